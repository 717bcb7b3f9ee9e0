"""Stored tensors by name, wherever they lie."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from runformer.models.part import Box

TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""safetensors' name of each type that can be written."""

TYPES = {name: dtype for dtype, name in TYPE_NAMES.items()}
"""The type of each of safetensors' names that can be read."""


class NamedTensors(Mapping[str, Tensor]):
    """Stored tensors by name, each read from the disk when it is asked for, to the CPU.

    Args:
        index: what is known of each without reading it, by name.
    """

    def __init__(self, index: Mapping[str, object]) -> None:
        self._index = index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index  # Mapping's own would read the tensor

    def __getitem__(self, name: str) -> Tensor:
        """One tensor, whole.

        Raises:
            KeyError: there is none of that name.
            CheckpointError: its file is damaged.
        """
        return self.read(name, Box.of(self.shape(name)))

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor; reads no data."""

    @abstractmethod
    def kind(self, name: str) -> str:
        """The type of one tensor as safetensors calls it (``F32``, ``BF16``); reads no data."""

    @abstractmethod
    def origin(self, name: str) -> str:
        """Where one tensor lies, for messages."""

    @abstractmethod
    def read(self, name: str, box: Box) -> Tensor:
        """A box of one tensor, on the CPU."""

    def fill(self, name: str, box: Box, out: Tensor) -> None:
        """Copy a box of one tensor into ``out``, of the box's shape and of any type and device."""
        out.copy_(self.read(name, box))


def some(names: Iterable[str]) -> str:
    """The first few of many names, to put into a sentence."""
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


class ArrayFile(Protocol):
    """A file of tensors, or several that are like one: what safetensors and MindSpore's own files have in common."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor; reads no data."""
        ...

    def dtype(self, name: str) -> str:
        """The type of one tensor as safetensors calls it; reads no data."""
        ...

    def read(self, name: str, box: Box) -> Tensor:
        """A box of one tensor, on the CPU."""
        ...
