"""The layers a decoder is made of.

Weights are stored in the dtype of ``Precision.parameters`` and cast where they are used, so float32
master weights with bfloat16 products need no autocast: the backward of a cast brings gradients back.

Shape suffixes: B batch, L positions, D hidden size, H heads, K head size, C = K / 2, F MLP width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Linear(nn.Linear):
    """``y = x Wᵀ + b`` in the dtype of ``x``."""

    def reset_parameters(self) -> None:
        """Nothing: ``models.build`` fills parameters, once, from weights or by name."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Embedding(nn.Embedding):
    """A table of rows, one a token."""

    def reset_parameters(self) -> None:
        """Nothing, as in ``Linear``."""


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv:1910.07467), computed in ``compute``, returned in the input's dtype."""

    def __init__(self, size: int, eps: float, compute: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        weight = self.weight.to(self.compute)
        return F.rms_norm(x.to(self.compute), self.weight.shape, weight, self.eps).to(x.dtype)


class _Rotate(torch.autograd.Function):
    """Rotate pairs of elements by given angles. The gradient is rotated back, so ``x`` need not be kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(gradient, cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def apply_rope(x_BLHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate every head by the angles of its position.

    Args:
        x_BLHK: queries or keys.
        cos: from ``rope_tables``, ``(L, C)`` or ``(B, L, C)``; the rotation runs in its dtype.
        sin: likewise.
    """
    rotated: Tensor = _Rotate.apply(x_BLHK, cos.unsqueeze(-2), sin.unsqueeze(-2))  # type: ignore[no-untyped-call]
    return rotated


class _SwiGLU(torch.autograd.Function):
    """``silu(gate) · up``, keeping only its two inputs: a third of what autograd would keep."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(gradient)
        grad_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return grad_gate, grad_up


def swiglu(gate_BLF: Tensor, up_BLF: Tensor) -> Tensor:
    """The gated activation of Llama's MLP (arXiv:2002.05202): ``silu(gate) · up``."""
    product: Tensor = _SwiGLU.apply(gate_BLF, up_BLF)  # type: ignore[no-untyped-call]
    return product
