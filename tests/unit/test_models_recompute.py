"""Recomputed layers give the same gradients, bit for bit, and keep little."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from tensor_memory import taken
from torch import Tensor

from runformer.config.task import LoraOptions, ModelOptions, Precision
from runformer.models.build import build_model, initialise
from runformer.models.decoder import CausalLM

OPTIONS = ModelOptions(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8,
    max_positions=32, initializer_range=0.3,
)  # fmt: skip
LORA = LoraOptions(4, 8.0, 0.3, "(?!lm_head).*")


def make(recomputed: range, lora: LoraOptions | None = None) -> CausalLM:
    model = build_model(OPTIONS, Precision(), torch.device("cpu"), lora).train()
    initialise(model, seed=5)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    model.model.recomputed = frozenset(recomputed)
    return model


def learn(model: CausalLM, kept: list[Tensor] | None = None) -> dict[str, Tensor | None]:
    """Gradients of two micro-batches of which the second is computed before the first goes back."""

    def note(tensor: Tensor) -> Tensor:
        if kept is not None:
            kept.append(tensor)
        return tensor

    outputs = []
    for rows in (torch.tensor([0, 1]), torch.tensor([2, 3])):
        model.place.rows_B = rows
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outputs.append(model(torch.arange(24).reshape(2, 12) + rows[0]))
    for output in outputs:
        output.pow(2).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora with dropout"])
@pytest.mark.parametrize("recomputed", [range(4), range(2), range(1, 3)], ids=str)
def test_gradients_are_the_same(recomputed: range, lora: LoraOptions | None) -> None:
    expected = learn(make(range(0), lora))
    for name, gradient in learn(make(recomputed, lora)).items():
        whole = expected[name]
        assert (gradient is None) == (whole is None), name
        assert gradient is None or whole is None or torch.equal(gradient, whole), name


def test_only_inputs_are_kept() -> None:
    sizes = []
    for recomputed in (range(0), range(4)):
        kept: list[Tensor] = []
        learn(make(recomputed), kept)
        sizes.append(sum(tensor.numel() for tensor in {tensor.data_ptr(): tensor for tensor in kept}.values()))
    assert sizes[1] < sizes[0] / 3


def recall(model: CausalLM, parts: str) -> None:
    for layer in model.layers.values():
        layer.mlp.recalls, layer.recalls = parts in ("products", "both"), parts in ("norms", "both")


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora with dropout"])
@pytest.mark.parametrize("parts", ["products", "norms", "both"])
def test_gradients_are_the_same_where_single_tensors_are_computed_again(parts: str, lora: LoraOptions | None) -> None:
    expected, model = learn(make(range(0), lora)), make(range(0), lora)
    recall(model, parts)
    for name, gradient in learn(model).items():
        whole = expected[name]
        assert (gradient is None) == (whole is None), name
        assert gradient is None or whole is None or torch.equal(gradient, whole), name


@pytest.mark.filterwarnings("ignore:.*profiler.*")
@pytest.mark.parametrize(("parts", "spared"), [("products", 48), ("norms", 2 * 32), ("both", 48 + 2 * 32)])
def test_what_is_computed_again_is_not_kept(tmp_path: Path, parts: str, spared: int) -> None:
    """Of each position of each layer, the MLP's width and twice the hidden size."""
    kept = []
    for chosen in ("none", parts):
        model = make(range(0))
        recall(model, chosen)
        kept.append(taken(tmp_path, partial(model, torch.arange(24).reshape(2, 12)))[-1])
    assert kept[0] - kept[1] == 4 * 24 * spared * 4
