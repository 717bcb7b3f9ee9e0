"""Which part of a model a process holds: of its layers, and of each parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    """

    shape: tuple[int, ...]
    dim: int
    spans: tuple[Span, ...]
    owned: tuple[Span, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...], *, owned: bool = True) -> Part:
        """All of a parameter."""
        spans = ((0, shape[0]),)
        return cls(shape, 0, spans, spans if owned else ())

    @property
    def is_whole(self) -> bool:
        """Whether all of the parameter is held."""
        return self.spans == ((0, self.shape[self.dim]),)

    @property
    def held_shape(self) -> tuple[int, ...]:
        """The shape of what is held."""
        held = sum(end - begin for begin, end in self.spans)
        return (*self.shape[: self.dim], held, *self.shape[self.dim + 1 :])

    def take(self, whole: Tensor) -> Tensor:
        """What is held, out of the whole parameter."""
        if self.is_whole:
            return whole
        return torch.cat([whole.narrow(self.dim, begin, end - begin) for begin, end in self.spans], self.dim)

    def put(self, held: Tensor, whole: Tensor) -> None:
        """Write what is owned into its place in the whole."""
        for begin, piece in self._owned_pieces(held):
            whole.narrow(self.dim, begin, piece.shape[self.dim]).copy_(piece)

    def own(self, held: Tensor) -> list[Tensor]:
        """What is owned of what is held, as views."""
        return [piece for _, piece in self._owned_pieces(held)]

    def _owned_pieces(self, held: Tensor) -> Iterator[tuple[int, Tensor]]:
        offset = 0
        for begin, end in self.spans:
            for own_begin, own_end in self.owned:
                low, high = max(begin, own_begin), min(end, own_end)
                if low < high:
                    yield low, held.narrow(self.dim, offset + low - begin, high - low)
            offset += end - begin


def even_spans(size: int, count: int) -> list[Span]:
    """Cut ``size`` things into ``count`` spans that differ by one at most, the longer ones first."""
    short, longer = divmod(size, count)
    ends = [index * short + min(index, longer) for index in range(count + 1)]
    return list(pairwise(ends))
