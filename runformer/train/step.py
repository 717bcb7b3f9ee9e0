"""One training step: forward and backward over the micro-batches, clip, update."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runformer.config.task import LossMean
from runformer.data.batch import TokenBatch
from runformer.errors import TrainingError
from runformer.models.decoder import TORCH_DTYPES, CausalLM
from runformer.models.layers import at_least_float32
from runformer.models.randomness import key_of
from runformer.observe.pulse import pulse
from runformer.parallel.inputs import Inputs
from runformer.parallel.model import ParallelModel
from runformer.train.loss import cross_entropy, vocabulary_of
from runformer.train.loss_scale import LossScaler
from runformer.train.optimizer import NamedOptimizer


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did.

    Attributes:
        loss: mean over the counted tokens of the global batch (see ``LossMean`` for the original's ways).
        local_loss: this rank's part of that, where ranks have losses of their own; else the same.
        grad_norm: before clipping; None where clipping is off.
        overflow: a gradient was not finite, and the update was left out.
        loss_scale: the loss scale that the step used.
        stop: some rank was told to end the run.
    """

    loss: float
    local_loss: float
    grad_norm: float | None
    overflow: bool
    loss_scale: float
    stop: bool


class TrainStep:
    """Turns the micro-batches of one step into one update of the model, together with the other ranks.

    Args:
        model: this rank's part of it.
        optimizer: of its parameters.
        scaler: the loss scale.
        max_grad_norm: to which gradients are clipped; None: they are not.
        seed: of dropout.
        loss_mean: what the loss is a mean over.
    """

    def __init__(
        self,
        model: ParallelModel,
        optimizer: NamedOptimizer,
        scaler: LossScaler,
        max_grad_norm: float | None,
        seed: int,
        loss_mean: LossMean = "global",
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self._replicas = model.mesh.replicas
        self._loss_mean = loss_mean
        # Only float16 gradients can underflow; a scale would leave all others as they are.
        self._scales_loss = model.precision.compute == "float16"

    def __call__(
        self,
        number: int,
        micro_batches: Sequence[TokenBatch],
        learning_rate: float,
        told_to_stop: Callable[[], bool] = lambda: False,
    ) -> StepResult:
        """Learn from one global batch, as step ``number`` of the run (from 1).

        Args:
            number: the step.
            micro_batches: this rank's rows.
            learning_rate: of the update.
            told_to_stop: whether this rank was told to end the run, which the others then hear.

        Raises:
            TrainingError: the loss, or without dynamic loss scaling a gradient, is not finite.
        """
        pulse().stamp(number, "tokens")
        # Keyed by place in the run: a resumed run draws the same numbers, with no generator state to save.
        self.model.set_key(key_of(self.seed, number))
        begins = itertools.accumulate(map(len, micro_batches), initial=0)
        inputs = [self.model.inputs(batch, begin) for batch, begin in zip(micro_batches, begins, strict=False)]
        divisors = self._divisors(inputs)
        pulse().stamp(number, "forward")
        losses = self._forward_backward(number, inputs, divisors)
        pulse().stamp(number, "loss")
        loss, local_loss, stop = self._agree(losses, told_to_stop())
        if not math.isfinite(loss):
            raise TrainingError(f"step {number}: the loss is {loss}", hint=_NOT_FINITE)
        pulse().stamp(number, "update")
        norm, overflow = self._finish_gradients()
        if overflow and not self.scaler.dynamic:
            raise TrainingError(
                f"step {number}: the loss is {loss:.4f}, but a gradient is not finite", hint=_NOT_FINITE
            )
        if not overflow:
            self.optimizer.update(learning_rate)
        loss_scale = self.scaler.scale
        self.scaler.update(overflow)
        self.optimizer.zero_grad()
        grad_norm = norm if self.max_grad_norm is not None else None
        return StepResult(loss, local_loss, grad_norm, overflow, loss_scale, stop)

    def _divisors(self, micro_batches: Sequence[Inputs]) -> list[float | Tensor]:
        """What each micro-batch's sum of token losses is divided by.

        Normalised by the tokens of the whole batch, so that neither accumulation nor ranks ever change the curve.
        """
        counts = [batch.counted for batch in micro_batches]
        if self._loss_mean == "micro_batch":
            most = max(self._replicas.gather(len(counts)))
            over_ranks = self._sum_of(counts + [0] * (most - len(counts)))
            return [over_ranks[index].clamp_min(1) * most for index in range(len(counts))]
        if self._loss_mean == "global" and self._replicas.size > 1:
            return [self._sum_of([sum(counts)])[0].clamp_min(1)] * len(counts)
        return [float(max(1, sum(counts)))] * len(counts)

    def _sum_of(self, counts: list[int]) -> Tensor:
        """Counts of tokens over all replicas, float32 on the device."""
        return self._replicas.sum(torch.tensor(counts, device=self.model.device)).float()

    def _forward_backward(
        self, number: int, micro_batches: Sequence[Inputs], divisors: Sequence[float | Tensor]
    ) -> Tensor:
        """Add up gradients; the sum of the losses that were computed here."""
        scale = self.scaler.scale if self._scales_loss else 1.0
        vocabulary = vocabulary_of(self.model)
        last = len(micro_batches) - 1

        def loss_of(model: CausalLM, hidden_BCD: Tensor, inputs: Inputs, index: int) -> Tensor:
            weight_VD, labels_BC = model.head_weight_VD, inputs.labels_BC
            loss = cross_entropy(hidden_BCD, weight_VD, labels_BC, divisors[index], vocabulary)
            if index == last:
                pulse().stamp(number, "backward")
            return loss * scale if scale != 1 else loss

        losses = self.model.forward_backward(micro_batches, loss_of)
        if not losses:  # they are computed on other ranks, and ranks must agree on a dtype
            dtype = TORCH_DTYPES[self.model.precision.compute]
            return at_least_float32(torch.zeros((), dtype=dtype, device=self.model.device))
        return torch.stack(losses).sum().detach() / scale

    def _agree(self, loss: Tensor, stop: bool) -> tuple[float, float, bool]:
        """The global loss, this rank's own, and whether some rank was told to stop."""
        world = self.model.mesh.world
        local = loss.item()
        if world.size == 1:
            return local, local, stop
        known = local if self.model.answers_for_loss else 0.0
        total, stops = world.sum(torch.tensor([known, stop], dtype=loss.dtype, device=world.device)).tolist()
        if self._loss_mean in ("rank_summed", "rank_averaged"):
            return total / self._replicas.size, local, stops > 0
        return total, total, stops > 0

    def _finish_gradients(self) -> tuple[float | None, bool]:
        """Finish, unscale, average and clip; the norm where it is known, and whether a gradient is not finite."""
        self.model.finish_gradients()
        factor = 1 / self.scaler.scale if self._scales_loss else 1.0
        if self._loss_mean == "rank_averaged":
            factor /= self._replicas.size
        if factor != 1:
            self.optimizer.scale_gradients(factor)
        if self.max_grad_norm is None and not self.scaler.dynamic:
            return None, False
        norm = self.model.norm(self.optimizer.gradients())
        if self.max_grad_norm is not None and math.isfinite(norm):
            self.optimizer.clip_gradients(self.max_grad_norm, norm)
        return norm, not math.isfinite(norm)


_NOT_FINITE = (
    "lower the learning rate (lr_schedule.learning_rate) or clip gradients (runner_wrapper.use_clip_grad); "
    "with float16, use bfloat16 or a dynamic scale_sense; the last checkpoint is as it was"
)
