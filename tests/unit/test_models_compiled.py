"""Compiled layers give the values and gradients of the same layers run as they are."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

from runformer.config.task import DType, ModelOptions, Precision
from runformer.models.build import build_model, initialise
from runformer.train.setup import compile_layers

OPTIONS = ModelOptions(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    max_positions=32, qk_norm=True, qkv_bias=True, tie_embeddings=True, initializer_range=0.3,
)  # fmt: skip


def values_and_gradients(compute: DType, *, compiled: bool) -> dict[str, Tensor]:
    model = build_model(OPTIONS, Precision(compute=compute), torch.device("cpu")).train()
    initialise(model, seed=5)
    if compiled:
        compile_layers(model)
    tokens = torch.arange(34).reshape(2, 17) % 61
    hidden = model(tokens)
    (hidden.float() * torch.linspace(-1, 1, hidden.numel()).reshape(hidden.shape)).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {"hidden": hidden.detach()} | {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler warns of what it does itself
@pytest.mark.parametrize(
    ("compute", "tolerance"), [("float32", 1e-5), pytest.param("bfloat16", 0.1, marks=pytest.mark.slow)]
)
def test_no_gradient_is_lost_in_compiled_layers(compute: DType, tolerance: float) -> None:
    """torch 2.11 loses gradients of functions that end in place: nothing fails, and training learns less."""
    expected = values_and_gradients(compute, compiled=False)
    for name, value in values_and_gradients(compute, compiled=True).items():
        error = (value.float() - expected[name].float()).norm() / expected[name].float().norm()
        assert error < tolerance, name
