"""Opening safetensors files of others, with clean errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from runformer.checkpoint.tensors import TYPES
from runformer.errors import CheckpointError
from runformer.models.part import Box

REMAP_BYTES = 64 << 20
"""A file is mapped anew after so much was read from it, so that loading takes little more than one tensor."""


class TensorFile:
    """A safetensors file to read from, mapped into memory: only what is asked for is read.

    Raises:
        CheckpointError: the file is missing, truncated or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._open()
        self._mapped_bytes = 0
        self.names: tuple[str, ...] = tuple(self._checked(self._file.keys))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return tuple(self._checked(lambda: self._file.get_slice(name).get_shape()))

    def dtype(self, name: str) -> str:
        """The type of one tensor, as safetensors calls it (``F32``, ``BF16``)."""
        return str(self._checked(lambda: self._file.get_slice(name).get_dtype()))

    def read(self, name: str, box: Box) -> Tensor:
        """A box of one tensor, on the CPU; its memory may be the file's."""
        # Pages that were read stay in this process's memory for as long as their mapping does.
        if self._mapped_bytes > REMAP_BYTES:
            self._file, self._mapped_bytes = self._open(), 0
        if self.dtype(name) not in TYPES:
            raise CheckpointError(
                f"{self.path}: the tensor {name} has the type {self.dtype(name)}, which cannot be read",
                hint="quantised weights are not supported: take float32, bfloat16 or float16 ones",
            )
        whole = box == Box.of(self.shape(name))
        tensor: Tensor = self._checked(
            lambda: self._file.get_tensor(name) if whole else self._file.get_slice(name)[box.place]
        )
        self._mapped_bytes += tensor.nbytes
        return tensor

    def _open(self) -> Any:
        return self._checked(lambda: safe_open(self.path, framework="pt", device="cpu"))

    def _checked(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except FileNotFoundError:
            raise CheckpointError(f"{self.path}: there is no such file", hint="check the path") from None
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.path}: not a whole safetensors file: {error}", hint="copy or download it again"
            ) from None
