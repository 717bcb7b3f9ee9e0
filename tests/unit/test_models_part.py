"""Boxes of parameters: what is held or owned, and shares of flattened tensors, wherever they lie in the whole."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runformer.models.part import Box, Part, flat_boxes


@st.composite
def parts(draw: st.DrawFn) -> Part:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    dim = draw(st.integers(0, len(shape) - 1))
    cuts = sorted(draw(st.sets(st.integers(0, shape[dim]), min_size=2, max_size=5)))
    spans = tuple(zip(cuts[::2], cuts[1::2], strict=False))
    owned = tuple(span for span in spans if draw(st.booleans()))
    part = Part(shape, dim, spans, owned)
    count = draw(st.integers(1, 4))
    return part.shared(draw(st.integers(0, count - 1)), count) if draw(st.booleans()) else part


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(math.prod(shape)).reshape(shape)


@given(parts())
def test_boxes_of_what_is_held_are_its_elements(part: Part) -> None:
    whole = numbered(part.shape)
    held, seen = part.take(whole), torch.zeros(part.held_shape, dtype=torch.int64)
    assert held.shape == part.held_shape
    for theirs, ours in part.boxes(Box.of(part.held_shape)):
        assert torch.equal(whole[theirs.place], held[ours.place])
        seen[ours.place] += 1
    assert (seen == 1).all()


@settings(max_examples=200)
@given(parts(), st.data())
def test_pieces_of_a_box_are_what_is_owned_of_it(part: Part, data: st.DataObject) -> None:
    whole, draw = numbered(part.shape), data.draw
    held = part.take(whole)
    bounds = [sorted((draw(st.integers(0, size)), draw(st.integers(0, size)))) for size in held.shape]
    box = Box(tuple(low for low, _ in bounds), tuple(high - low for low, high in bounds))
    found = [(whole[place.place], piece) for place, piece in part.pieces(held[box.place], box)]
    assert all(torch.equal(expected, piece) for expected, piece in found)
    owned = {int(e) for begin, end in part.owned for e in whole.narrow(part.dim, begin, end - begin).flatten()}
    ours = [int(element) for _, piece in found for element in piece.flatten()]
    assert sorted(ours) == sorted(owned & {int(element) for element in held[box.place].flatten()})


@settings(max_examples=200)
@given(st.lists(st.integers(1, 5), max_size=4).map(tuple), st.data())
def test_flat_boxes_are_consecutive_elements(shape: tuple[int, ...], data: st.DataObject) -> None:
    whole, size = numbered(shape), math.prod(shape)
    begin, end = sorted((data.draw(st.integers(0, size)), data.draw(st.integers(0, size))))
    boxes = list(flat_boxes(shape, begin, end))
    elements: Callable[[Box], list[int]] = lambda box: whole[box.place].flatten().tolist()  # noqa: E731
    assert [element for box in boxes for element in elements(box)] == list(range(begin, end))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)
    assert sum(box.numel for box in boxes) == end - begin
