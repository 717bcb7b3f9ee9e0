"""Weights in the layout that oneDNN's products read fastest, for generation on a CPU.

A decode step multiplies a few rows by every weight of the model, so its speed is that of reading them, and the library
reads its own layout faster than plain matrices (``benchmarks/generate.py``).
"""

from __future__ import annotations

import itertools
import weakref

import torch
from torch import Tensor, nn

from runformer.models.decoder import CausalLM
from runformer.models.layers import Linear

_ROWS = 8  # of activations that the layout is made for; any number works

_numbers = itertools.count()
_packed: dict[int, Tensor] = {}

# Compiled code cannot take tensors in oneDNN's own layout as arguments: there the weight is known by its number.
_library = torch.library.Library("runformer", "FRAGMENT")
_library.define("packed_linear(Tensor x, int number, int out_features, Tensor? bias) -> Tensor")


@torch.library.impl(_library, "packed_linear", "CPU")
def _packed_linear(x: Tensor, number: int, out_features: int, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return _product(x, _packed[number], bias)


@torch.library.register_fake("runformer::packed_linear", lib=_library)  # type: ignore[untyped-decorator]
def _fake_packed_linear(x: Tensor, number: int, out_features: int, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return x.new_empty(*x.shape[:-1], out_features)


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product


class PackedLinear(nn.Module):
    """``y = x Wᵀ + b`` for inference, with its own copy of W."""

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features = len(weight)
        self.number = next(_numbers)
        _packed[self.number] = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        weakref.finalize(self, _packed.pop, self.number)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        if not torch.compiler.is_compiling():
            return _product(x, _packed[self.number], self.bias)
        product: Tensor = torch.ops.runformer.packed_linear(x, self.number, self.out_features, self.bias)
        return product


@torch.no_grad()
def pack_weights(model: CausalLM) -> None:
    """Replace the linear layers of a model on a CPU, where oneDNN multiplies in their dtype."""
    if not _can_pack(model.head_weight_VD):
        return
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is Linear:
                setattr(parent, name, PackedLinear(layer.weight, layer.bias))
    if model.lm_head is None:
        model.lm_head = PackedLinear(model.head_weight_VD, None)


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
