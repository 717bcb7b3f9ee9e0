"""Memory in which a state waits to be written while training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from runformer.checkpoint.pieces import Piece


class Staging:
    """Copies of pieces in the host's memory, which later copies take again."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copies(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces as they are now; whatever becomes of their tensors afterwards."""
        copied = [replace(piece, tensor=self._copy(piece)) for piece in pieces]
        if any(piece.tensor.device.type == "cuda" for piece in pieces):
            torch.cuda.synchronize()
        return copied

    def _copy(self, piece: Piece) -> Tensor:
        tensor, buffer = piece.tensor, self._buffers.get(piece.key)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            # From pinned memory a device copies by itself, all tensors one after the other, without this process.
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
            self._buffers[piece.key] = buffer
        return buffer.copy_(tensor, non_blocking=tensor.device.type == "cuda")  # others are not waited for above
