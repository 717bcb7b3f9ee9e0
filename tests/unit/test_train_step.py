"""One step: what padding hides, what accumulation keeps, what overflow leaves out, what is not finite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runformer.config.task import LoraOptions, LossScaleOptions, ModelOptions, OptimizerOptions, Precision
from runformer.data import IGNORED
from runformer.data.batch import TokenBatch
from runformer.errors import TrainingError
from runformer.models.build import build_model, initialise
from runformer.parallel.compose import undivided
from runformer.parallel.inputs import attention_mask
from runformer.parallel.model import ParallelModel
from runformer.train.loss_scale import LossScaler
from runformer.train.optimizer import NamedAdamW
from runformer.train.step import TrainStep

OPTIONS = ModelOptions(50, 32, 48, 2, 4, 2, 8, 64, initializer_range=0.2)
PAD = 0
FLOAT32, NO_SCALE = Precision(), LossScaleOptions()


def make_step(
    precision: Precision = FLOAT32,
    scale: LossScaleOptions = NO_SCALE,
    max_grad_norm: float | None = 1.0,
    lora: LoraOptions | None = None,
) -> TrainStep:
    model = build_model(OPTIONS, precision, torch.device("cpu"), lora)
    initialise(model, 1)
    return TrainStep(undivided(model), NamedAdamW(model, OptimizerOptions()), LossScaler(scale), max_grad_norm, seed=3)


def make_batch(rows: int = 4, length: int = 12, seed: int = 0, padding: float = 0.2) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(1, 50, (rows, length), generator=generator)
    inputs[torch.rand(rows, length, generator=generator) < padding] = PAD
    labels = torch.randint(1, 50, (rows, length), generator=generator)
    keep = inputs != PAD
    labels[~keep] = IGNORED
    return TokenBatch.of(inputs, labels, keep)


def weights(model: ParallelModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for _, parameter in model.named_parameters()]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(2, 10))
def test_hidden_padding_cannot_be_seen(seed: int, rows: int, length: int) -> None:
    """Whatever stands where padding is, hidden states of all other positions stay as they are."""
    batch = make_batch(rows, length, seed, padding=0.4)
    model = build_model(OPTIONS, Precision(), torch.device("cpu"))
    initialise(model, 1)
    changed = torch.where(batch.keep_BL, batch.inputs_BL, 7)
    mask = attention_mask(batch)
    with torch.no_grad():
        before, after = model(batch.inputs_BL, mask=mask), model(changed, mask=mask)
    assert torch.isfinite(before).all()
    assert torch.equal(before[batch.keep_BL], after[batch.keep_BL])


def test_without_padding_before_a_token_the_plain_causal_kernel_is_used() -> None:
    batch = make_batch(padding=0.0)
    assert attention_mask(batch) is None
    (model,) = make_step().model.stages
    explicit = torch.ones(12, 12, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        torch.testing.assert_close(model(batch.inputs_BL), model(batch.inputs_BL, mask=explicit))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_micro_batches_of_any_size_learn_the_same(rows: int) -> None:
    batch = make_batch(6, padding=0.5)
    whole, parts = make_step(), make_step()
    one, other = whole(1, [batch], 1e-3), parts(1, batch.split(rows), 1e-3)
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
    assert one.stop is other.stop is False
    # Adam's first step is the gradient's sign: nearly zero gradients may differ by the whole step.
    for a, b in zip(weights(whole.model), weights(parts.model), strict=True):
        assert (a - b).abs().max() <= 2.1e-3
        assert (a - b).abs().mean() <= 1e-5


def test_loss_falls() -> None:
    step, batch = make_step(), make_batch()
    losses = [step(number, [batch], 1e-2).loss for number in range(1, 21)]
    assert losses[-1] < 0.3 * losses[0]


def test_a_loss_that_is_not_finite_ends_the_run_before_the_update() -> None:
    step = make_step()
    with torch.no_grad():
        dict(step.model.named_parameters())["model.norm.weight"][0] = float("nan")
    before = weights(step.model)
    with pytest.raises(TrainingError, match="step 5: the loss is nan"):
        step(5, [make_batch()], 1e-3)
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(before, weights(step.model), strict=True))


def test_an_overflow_is_left_out_and_lowers_a_dynamic_scale() -> None:
    step = make_step(Precision(compute="float16"), LossScaleOptions(2.0**40, dynamic=True, factor=2.0, window=2))
    before = weights(step.model)
    result = step(1, [make_batch()], 1e-3)
    assert result.overflow
    assert result.loss_scale == 2.0**40
    assert step.scaler.scale == 2.0**39
    assert step.optimizer.updates == 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(step.model), strict=True))


def test_a_fixed_scale_that_overflows_is_an_error() -> None:
    step = make_step(Precision(compute="float16"), LossScaleOptions(2.0**40))
    with pytest.raises(TrainingError, match="a gradient is not finite"):
        step(1, [make_batch()], 1e-3)


def test_a_float16_scale_changes_neither_loss_nor_norm() -> None:
    plain = make_step(Precision(compute="float16"))
    scaled = make_step(Precision(compute="float16"), LossScaleOptions(256.0))
    one, other = plain(1, [make_batch()], 1e-3), scaled(1, [make_batch()], 1e-3)
    assert one.loss == other.loss
    assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-2)


def test_no_clipping_gives_no_norm() -> None:
    assert make_step(max_grad_norm=None)(1, [make_batch()], 1e-3).grad_norm is None


def test_dropout_hangs_on_seed_step_and_micro_batch() -> None:
    lora = LoraOptions(4, 8.0, 0.5, ".*w.")
    steps = [make_step(lora=lora) for _ in range(3)]
    for step in steps:
        for name, parameter in step.model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(99)  # whatever was drawn before must not matter
    first, again, later = (
        steps[0](4, [make_batch()], 0.0),
        steps[1](4, [make_batch()], 0.0),
        steps[2](5, [make_batch()], 0.0),
    )
    assert first.loss == again.loss
    assert first.loss != later.loss
