"""Single tensors that are not kept for the backward pass but computed again: those that are large and cheap to have.

Compilers of whole layers choose such tensors by themselves; this is for layers that run operator by operator.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def recalling(tensor: Tensor, again: Callable[[], Tensor]) -> AbstractContextManager[object]:
    """Within this, whatever saves ``tensor`` for its backward pass keeps how to compute it again instead.

    Args:
        tensor: of any shape; views of all of it count as well.
        again: gives the same values from what others keep anyway; it must not refer to ``tensor``.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nullcontext()
    memory, elements = _memory(tensor), tensor.numel()

    def pack(saved: Tensor) -> Tensor | torch.Size:
        is_it = saved.numel() == elements and _memory(saved) == memory
        return saved.shape if is_it else saved

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.enable_grad():  # as the first time: there are other kernels without
            return again().detach().view(kept)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
