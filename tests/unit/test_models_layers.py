"""The linear layer with weights of a wider dtype than what it multiplies: values, gradients, and what it keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runformer.models.layers import Linear

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def make(bias: bool, trained: bool = True) -> Linear:
    torch.manual_seed(0)
    layer = Linear(24, 40, bias=bias)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
        parameter.requires_grad_(trained)
    return layer


def plain(layer: Linear, x: Tensor) -> Tensor:
    """The same by PyTorch's own functions, whose backward of a cast brings gradients back."""
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients_are_those_of_a_cast_bit_for_bit(dtype: torch.dtype, bias: bool) -> None:
    layer = make(bias)
    results = []
    for forward in (layer, lambda x: plain(layer, x)):
        x = torch.linspace(-2, 2, 3 * 5 * 24).reshape(3, 5, 24).to(dtype).requires_grad_()
        layer.zero_grad()
        y = forward(x)
        y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(dtype))
        results.append([y, x.grad, *(parameter.grad for parameter in layer.parameters())])
    for ours, theirs in zip(*results, strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_it_keeps_its_input_at_most_and_never_a_copy_of_its_weight(trained: bool) -> None:
    layer = make(bias=True, trained=trained)
    x = torch.randn(7, 24, dtype=torch.bfloat16, requires_grad=True)
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = layer(x)
    own = {x.data_ptr(), layer.weight.data_ptr()} if trained else {layer.weight.data_ptr()}
    assert {tensor.data_ptr() for tensor in saved} == own
    y.sum().backward()
    assert x.grad is not None
    assert (layer.weight.grad is not None) == trained


def test_an_input_without_gradient_gets_none() -> None:
    layer = make(bias=False)
    x = torch.randn(7, 24, dtype=torch.bfloat16)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert x.grad is None
