"""Which part of a model a process holds: of its layers, and of each parameter."""

from __future__ import annotations

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
        for place, piece in self._owned_pieces(held):
            whole[place].copy_(piece)

    def own(self, held: Tensor) -> list[Tensor]:
        """What is owned of what is held, as views."""
        return [piece for _, piece in self._owned_pieces(held)]

    def _owned_pieces(self, held: Tensor) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """What is owned, and its place in the whole."""
        first_row, last_row = self.rows or (0, self.held_shape[0])
        offset = 0
        for begin, end in self.spans:
            for own_begin, own_end in self.owned:
                low, high = max(begin, own_begin), min(end, own_end)
                if self.dim == 0:  # then rows are what is cut: of these, too, only some are here
                    low, high = max(low, begin + first_row - offset), min(high, begin + last_row - offset)
                if low < high and first_row < last_row:
                    at = offset + low - begin - (first_row if self.dim == 0 else 0)
                    place = [slice(None)] * self.dim + [slice(low, high)]
                    if self.dim:
                        place[0] = slice(first_row, last_row)
                    yield tuple(place), held.narrow(self.dim, at, high - low)
            offset += end - begin


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
