"""Which part of a model a process holds: of its layers, and of each parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

Span = tuple[int, int]
"""Indices from the first to before the second."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive layers of a model. The first stage has the embedding, the last one the final norm and the output."""

    layers: range
    first: bool = True
    last: bool = True


@dataclass(frozen=True, slots=True)
class Box:
    """A box of a tensor: where it begins in each dimension, and how long it is there."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Box:
        """All of a tensor."""
        return cls((0,) * len(shape), shape)

    @property
    def place(self) -> tuple[slice, ...]:
        """The index of the box in its tensor."""
        return tuple(slice(begin, begin + size) for begin, size in zip(self.offset, self.shape, strict=True))

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def meet(self, other: Box) -> Box | None:
        """What both have in common; None: nothing."""
        bounds = [
            (max(a, b), min(a + m, b + n))
            for a, m, b, n in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        ]
        if any(low >= high for low, high in bounds):
            return None
        return Box(tuple(low for low, _ in bounds), tuple(high - low for low, high in bounds))

    def inside(self, other: Box) -> Box:
        """The same, as a box of the tensor that ``other`` is."""
        return Box(tuple(a - b for a, b in zip(self.offset, other.offset, strict=True)), self.shape)

    def along(self, dim: int, begin: int, end: int) -> Box:
        """The part of it from ``begin`` to before ``end`` of one dimension of its tensor; both lie in it."""
        offset, shape = list(self.offset), list(self.shape)
        offset[dim], shape[dim] = begin, end - begin
        return Box(tuple(offset), tuple(shape))


@dataclass(frozen=True, slots=True)
class Part:
    """What a process holds of one parameter: some spans of one dimension, one after the other.

    Attributes:
        shape: of the whole parameter.
        dim: the dimension that is cut.
        spans: what is held of it.
        owned: what of that no other process of the same copy of the model answers for: in sums over all elements,
            and in files, each element is there once.
        rows: which of the rows of that are here, where copies of the model share them out; None: all.
    """

    shape: tuple[int, ...]
    dim: int
    spans: tuple[Span, ...]
    owned: tuple[Span, ...]
    rows: Span | None = None

    @classmethod
    def whole(cls, shape: tuple[int, ...], *, owned: bool = True) -> Part:
        """All of a parameter."""
        spans = ((0, shape[0]),)
        return cls(shape, 0, spans, spans if owned else ())

    @property
    def is_whole(self) -> bool:
        """Whether all of the parameter is held."""
        return self.rows is None and self._is_uncut

    @property
    def _is_uncut(self) -> bool:
        return self.spans == ((0, self.shape[self.dim]),)

    @property
    def held_shape(self) -> tuple[int, ...]:
        """The shape of what is held."""
        held = sum(end - begin for begin, end in self.spans)
        shape = (*self.shape[: self.dim], held, *self.shape[self.dim + 1 :])
        return shape if self.rows is None else (self.rows[1] - self.rows[0], *shape[1:])

    def shared(self, rank: int, count: int) -> Part:
        """The rows of this that the ``rank``-th of ``count`` copies of the model has: as many each, the last ones less.

        PyTorch's ``fully_shard`` cuts so.
        """
        rows = self.held_shape[0]
        size = -(-rows // count)
        return replace(self, rows=(min(rows, rank * size), min(rows, (rank + 1) * size)))

    def take(self, whole: Tensor) -> Tensor:
        """What is held, out of the whole parameter."""
        held = whole
        if not self._is_uncut:
            held = torch.cat([whole.narrow(self.dim, begin, end - begin) for begin, end in self.spans], self.dim)
        return held if self.rows is None else held[slice(*self.rows)]

    def put(self, held: Tensor, whole: Tensor) -> None:
        """Write what is owned into its place in the whole."""
        for box, piece in self.pieces(held):
            whole[box.place].copy_(piece)

    def own(self, held: Tensor) -> list[Tensor]:
        """What is owned of what is held, as views."""
        return [piece for _, piece in self.pieces(held)]

    def pieces(self, held: Tensor, at: Box | None = None) -> Iterator[tuple[Box, Tensor]]:
        """What is owned of what is held, or of a box of that: boxes of the whole, each with a view of its elements."""
        at = at or Box.of(self.held_shape)
        for whole, here in self.boxes(at):
            low, high = whole.offset[self.dim], whole.offset[self.dim] + whole.shape[self.dim]
            for begin, end in self.owned:
                first, last = max(low, begin), min(high, end)
                if first < last:
                    start = here.offset[self.dim] - at.offset[self.dim] + first - low
                    yield whole.along(self.dim, first, last), held.narrow(self.dim, start, last - first)

    def boxes(self, at: Box) -> Iterator[tuple[Box, Box]]:
        """A box of what is held, as boxes of the whole, each with its own place in what is held."""
        first_row = self.rows[0] if self.rows is not None else 0
        down = 0 if self.dim else first_row  # held indices of the dimension that is cut are so many less
        low, high = at.offset[self.dim] + down, at.offset[self.dim] + down + at.shape[self.dim]
        rows = at if not self.dim else Box((at.offset[0] + first_row, *at.offset[1:]), at.shape)
        offset = 0
        for begin, end in self.spans:
            first, last = max(low, offset), min(high, offset + end - begin)
            if first < last and at.numel:
                ours = begin - offset
                yield rows.along(self.dim, first + ours, last + ours), at.along(self.dim, first - down, last - down)
            offset += end - begin


def flat_boxes(shape: tuple[int, ...], begin: int, end: int) -> Iterator[Box]:
    """The elements from ``begin`` to before ``end`` of a tensor in C order, as boxes of consecutive elements."""
    if begin >= end:
        return
    if not shape:
        yield Box((), ())
        return
    inner, inside = math.prod(shape[1:]), shape[1:]
    first, last = -(-begin // inner), end // inner  # the rows of which all is meant
    if first > last:
        yield from (_in_row(last, box) for box in flat_boxes(inside, begin - last * inner, end - last * inner))
        return
    yield from (_in_row(first - 1, box) for box in flat_boxes(inside, begin - (first - 1) * inner, inner))
    if first < last:
        yield Box((first, *(0 for _ in inside)), (last - first, *inside))
    yield from (_in_row(last, box) for box in flat_boxes(inside, 0, end - last * inner))


def _in_row(row: int, box: Box) -> Box:
    return Box((row, *box.offset), (1, *box.shape))


def even_spans(size: int, count: int) -> list[Span]:
    """Cut ``size`` things into ``count`` spans that differ by one at most, the longer ones first."""
    short, longer = divmod(size, count)
    ends = [index * short + min(index, longer) for index in range(count + 1)]
    return list(pairwise(ends))


def local(tensor: Tensor) -> Tensor:
    """What this process has of a parameter or a gradient: its rows where copies share it out, else all of it."""
    to_local = getattr(tensor, "to_local", None)  # by the method: importing DTensor takes a second
    rows: Tensor = tensor if to_local is None else to_local()
    return rows
