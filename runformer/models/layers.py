"""The layers a decoder is made of.

Weights are stored in the dtype of ``Precision.parameters`` and cast where they are used, so float32
master weights with bfloat16 products need no autocast: the backward of a cast brings gradients back.

Shape suffixes: B batch, L positions, D hidden size, H heads, K head size, F MLP width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32; one of float64 stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Linear(nn.Linear):
    """``y = x Wᵀ + b`` in the dtype of ``x``."""

    def reset_parameters(self) -> None:
        """Nothing: ``models.build`` fills parameters, once, from weights or by name."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.weight.dtype == x.dtype or not torch.is_grad_enabled():
            return F.linear(x, self.weight.to(x.dtype), bias)
        product: Tensor = _CastLinear.apply(x, self.weight, bias)  # type: ignore[no-untyped-call]
        return product


class _CastLinear(torch.autograd.Function):
    """``x Wᵀ + b`` with W cast to the dtype of x, once more in the backward pass.

    Autograd would keep the cast copies of all weights at once: an eighth of what float32 weights, gradients and
    moments take.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        grad_x = gradient @ weight.to(gradient.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = (rows.T @ x.flatten(0, -2)).to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


def side_by_side(layers: Sequence[nn.Module]) -> Linear | None:
    """One layer whose output is that of several on the same input, concatenated; None where one is not plain linear."""
    plain = [layer for layer in layers if type(layer) is Linear]
    if len(plain) < len(layers):
        return None
    has_bias = plain[0].bias is not None
    with torch.device("meta"):
        whole = Linear(plain[0].in_features, sum(layer.out_features for layer in plain), bias=has_bias)
    whole.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in plain]), requires_grad=False)
    if has_bias:
        whole.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in plain]), requires_grad=False)
    return whole


class Embedding(nn.Embedding):
    """A table of rows, one a token."""

    def reset_parameters(self) -> None:
        """Nothing, as in ``Linear``."""


# The compiler of torch 2.11 loses the gradients of an autograd function, without a word, where the last operation of
# its forward pass was in place, or a cast to the dtype that was there already. Compiled code needs no such care for
# memory; code that runs as it is does.


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` itself where it is of that dtype."""
    return x if x.dtype == dtype else x.to(dtype)


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """``x · factor``, in the memory of ``x``."""
    return x * factor if torch.compiler.is_compiling() else x.mul_(factor)


def _plus(x: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``x + one · other``, in the memory of ``x``."""
    return torch.addcmul(x, one, other) if torch.compiler.is_compiling() else x.addcmul_(one, other)


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
        if x.device.type == "cpu" and torch.is_grad_enabled():
            normed: Tensor = _CpuRMSNorm.apply(x, weight, self.eps)  # type: ignore[no-untyped-call]
            return normed
        return F.rms_norm(x.to(self.compute), weight.shape, weight, self.eps).to(x.dtype)


class _CpuRMSNorm(torch.autograd.Function):
    """PyTorch has one kernel for this on accelerators; on a CPU it strings small operations together.

    This keeps only its input and one number a row for the backward pass, where they keep three tensors more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=weight.dtype)
        scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return _cast(_times(x * scale, weight), x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        products = gradient * normed
        grad_weight = products.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        # With n = x · scale and g = gradient · weight: dx = scale · (g − n · mean(g · n))
        mean = (products @ weight).unsqueeze(-1).div_(x.shape[-1])
        grad_x = torch.addcmul(gradient * weight, normed, mean, value=-1).mul_(scale)
        return grad_x.to(x.dtype), grad_weight, None


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
    wide = x.to(cos.dtype)
    swapped = wide.roll(wide.shape[-1] // 2, dims=-1)
    return _cast(_plus(wide * cos, swapped, sin), x.dtype)


def apply_rope(x_BLHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate every head by the angles of its position.

    Args:
        x_BLHK: queries or keys.
        cos: from ``rope_tables``, ``(L, 1, K)`` or ``(B, L, 1, K)``; the rotation runs in its dtype.
        sin: likewise.
    """
    if not torch.is_grad_enabled():  # generation: the call of an autograd function would cost as much as the rest
        return _rotate(x_BLHK, cos, sin)
    rotated: Tensor = _Rotate.apply(x_BLHK, cos, sin)  # type: ignore[no-untyped-call]
    return rotated


class _SwiGLU(torch.autograd.Function):
    """``silu(gate) · up``, keeping only its two inputs: a third of what autograd would keep."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _times(F.silu(gate), up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(gradient)
        grad_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return grad_gate, grad_up


def swiglu(gate_BLF: Tensor, up_BLF: Tensor) -> Tensor:
    """The gated activation of Llama's MLP (arXiv:2002.05202): ``silu(gate) · up``."""
    if not torch.is_grad_enabled():
        return F.silu(gate_BLF).mul_(up_BLF)
    product: Tensor = _SwiGLU.apply(gate_BLF, up_BLF)  # type: ignore[no-untyped-call]
    return product
