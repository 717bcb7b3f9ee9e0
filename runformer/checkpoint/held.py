"""What a process holds of stored tensors that go with a model's parameters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from runformer.checkpoint.tensors import TYPES, NamedTensors
from runformer.models.part import Box, Part, Span, flat_boxes


class SavedState(Mapping[str, Tensor]):
    """What a process holds of an optimizer's saved tensors, ``<key>.<parameter's name>``."""

    @abstractmethod
    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of what is held."""

    @abstractmethod
    def fill(self, key: str, out: Tensor, span: Span | None = None) -> None:
        """Copy what is held into ``out``; with ``span`` only those of its elements, flattened."""


class HeldState(SavedState):
    """Of a checkpoint: what belongs to the parts of parameters that are here. No more than that is read.

    Args:
        tensors: the checkpoint.
        parts: what is held of each parameter.
    """

    def __init__(self, tensors: NamedTensors, parts: Mapping[str, Part]) -> None:
        self._tensors, self._parts = tensors, parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def __getitem__(self, key: str) -> Tensor:
        out = torch.empty(self.shape(key), dtype=TYPES[self._tensors.kind(key)])
        self.fill(key, out)
        return out

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of what is held."""
        part = self._part(key)
        return self._tensors.shape(key) if part is None else part.held_shape

    def fill(self, key: str, out: Tensor, span: Span | None = None) -> None:
        """Copy what is held into ``out``; with ``span`` only those of its elements, flattened."""
        part = self._part(key)
        if part is None:
            self._tensors.fill(key, Box.of(self.shape(key)), out)
            return
        begin = 0
        for box in [Box.of(part.held_shape)] if span is None else flat_boxes(part.held_shape, *span):
            target = out if span is None else out[begin : begin + box.numel].view(box.shape)
            for whole, here in part.boxes(box):
                self._tensors.fill(key, whole, target[here.inside(box).place])
            begin += box.numel

    def _part(self, key: str) -> Part | None:
        """What is held of a tensor; None: all, since it is not of its parameter's shape."""
        part = self._parts.get(key.partition(".")[2])
        return part if part is not None and self._tensors.shape(key) == part.shape else None
