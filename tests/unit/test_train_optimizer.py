"""Our AdamW by name against PyTorch's class, its state on the way out and in again, and clipping."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from saved_states import InMemory
from torch import Tensor, nn

from runformer.config.task import OptimizerOptions
from runformer.errors import CheckpointError
from runformer.train.optimizer import NamedAdamW

OPTIONS = OptimizerOptions((0.9, 0.95), 1e-8, 0.1)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3, bias=False))


def make_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def rates(step: int) -> float:
    return 1e-2 / (step + 1)


def test_updates_equal_pytorchs_class_with_decay_on_matrices_only() -> None:
    ours, theirs = make_model(), make_model()
    optimizer = NamedAdamW(ours, OPTIONS)
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, betas=OPTIONS.betas, eps=OPTIONS.eps, fused=True)
    for step in range(5):
        make_gradients(ours, step)
        make_gradients(theirs, step)
        optimizer.update(rates(step))
        for group in reference.param_groups:
            group["lr"] = rates(step)
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    assert optimizer.updates == 5


def test_state_taken_up_goes_on_bit_for_bit() -> None:
    whole, first, second = make_model(), make_model(), make_model()
    optimizers = [NamedAdamW(model, OPTIONS) for model in (whole, first, second)]
    for step in range(6):
        make_gradients(whole, step)
        optimizers[0].update(rates(step))
    for step in range(3):
        make_gradients(first, step)
        optimizers[1].update(rates(step))
    second.load_state_dict(first.state_dict())
    state = InMemory({k: v.clone() for k, v in optimizers[1].state().items()})
    optimizers[2].load_state(state, optimizers[1].updates)
    for step in range(3, 6):
        make_gradients(second, step)
        optimizers[2].update(rates(step))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_state_has_two_moments_a_trainable_parameter() -> None:
    model = make_model()
    model[0].requires_grad_(False)
    optimizer = NamedAdamW(model, OPTIONS)
    assert optimizer.state() == {}
    make_gradients(model, 0)
    optimizer.update(0.1)
    assert set(optimizer.state()) == {f"{m}.{n}" for m in ("exp_avg", "exp_avg_sq") for n in optimizer.parameters}
    assert "exp_avg.0.weight" not in optimizer.state()


@pytest.mark.parametrize(("change", "words"), [("drop", "missing"), ("reshape", r"\(2, 3\).*\(6, 8\)")])
def test_a_moment_that_does_not_fit_is_named(change: str, words: str) -> None:
    model = make_model()
    optimizer = NamedAdamW(model, OPTIONS)
    make_gradients(model, 0)
    optimizer.update(0.1)
    state: dict[str, Tensor] = dict(optimizer.state())
    if change == "drop":
        del state["exp_avg_sq.1.weight"]
    else:
        state["exp_avg_sq.1.weight"] = torch.zeros(2, 3)
    other = NamedAdamW(make_model(), OPTIONS)
    with pytest.raises(CheckpointError, match=rf"exp_avg_sq\.1\.weight.*{words}"):
        other.load_state(InMemory(state), 1)
    assert other.state() == {}, "a state that does not fit is not taken up in part"


@pytest.mark.parametrize("limit", [0.5, 1e9])
def test_clipping_bounds_the_joint_norm(limit: float) -> None:
    model, reference = make_model(), make_model()
    make_gradients(model, 1)
    make_gradients(reference, 1)
    optimizer = NamedAdamW(model, OPTIONS)
    norm = float(torch.nn.utils.get_total_norm(list(optimizer.gradients().values())))
    optimizer.clip_gradients(limit, norm)
    expected = nn.utils.clip_grad_norm_(reference.parameters(), limit)
    assert math.isclose(norm, expected.item(), rel_tol=1e-6)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_without_bias_correction_it_is_mindspore_s_adam_weight_decay(repository: Path) -> None:
    """The optimizer of FP32StateAdamWeightDecay, against numbers that MindSpore computed."""
    case = json.loads((repository / "tests/oracle/adam_weight_decay.json").read_text())
    model = nn.Linear(4, 3)
    model.bias = nn.Parameter(torch.tensor(case["bias"]))
    model.weight = nn.Parameter(torch.tensor(case["weight"]))
    optimizer = NamedAdamW(model, OptimizerOptions((0.9, 0.95), 1e-6, 0.1, bias_correction=False))
    for gradients, after in zip(case["gradients"], case["after"], strict=True):
        for parameter, gradient in zip((model.weight, model.bias), gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.update(0.01)
        for parameter, expected in zip((model.weight, model.bias), after, strict=True):
            torch.testing.assert_close(parameter.detach(), torch.tensor(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_have_float32_moments(dtype: torch.dtype) -> None:
    """Gradients of 1e-5, whose squares float16 does not know, still move the weights as in float64."""
    model = nn.Linear(8, 8, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.fill_(0.5)
    optimizer = NamedAdamW(model, OptimizerOptions((0.9, 0.95), 1e-12, 0.0))
    exact, first, second = 0.5, 0.0, 0.0
    for step in range(1, 5):
        model.weight.grad = torch.full_like(model.weight, 1e-5)
        gradient = float(model.weight.grad[0, 0])
        optimizer.update(1 / 64)
        first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient**2
        exact -= 1 / 64 * (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.95**step)) + 1e-12)
    assert {moment.dtype for moment in optimizer.state().values()} == {torch.float32}
    assert model.weight[0, 0].item() == pytest.approx(exact, abs=2e-3)
