"""One training step: forward and backward over the micro-batches, clip, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from runformer.config.task import LossMean
from runformer.data import IGNORED
from runformer.data.batch import TokenBatch
from runformer.errors import TrainingError
from runformer.models.decoder import CausalLM
from runformer.observe.pulse import pulse
from runformer.parallel.group import Group, alone, collecting_gradients, copy_over_ranks
from runformer.train.loss import cross_entropy
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
        model: this rank's copy.
        optimizer: of its parameters.
        scaler: the loss scale.
        max_grad_norm: to which gradients are clipped; None: they are not.
        seed: of dropout.
        group: the ranks that share every global batch.
        loss_mean: what the loss is a mean over.
    """

    def __init__(
        self,
        model: CausalLM,
        optimizer: NamedOptimizer,
        scaler: LossScaler,
        max_grad_norm: float | None,
        seed: int,
        group: Group | None = None,
        loss_mean: LossMean = "global",
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.group = group or alone(model.device)
        self._copy = copy_over_ranks(model, self.group)
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
        divisors = self._divisors(micro_batches)
        pulse().stamp(number, "forward")
        losses = []
        for index, (batch, divisor) in enumerate(zip(micro_batches, divisors, strict=True)):
            self._seed_dropout(number, index)
            losses.append(self._forward_backward(number, batch, divisor, last=index == len(micro_batches) - 1))
        pulse().stamp(number, "loss")
        loss, local_loss, stop = self._agree(torch.stack(losses).sum(), told_to_stop())
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

    def _divisors(self, micro_batches: Sequence[TokenBatch]) -> list[float | Tensor]:
        """What each micro-batch's sum of token losses is divided by.

        Normalised by the tokens of the whole batch, so that neither accumulation nor ranks ever change the curve.
        """
        counts = [int((batch.labels_BL != IGNORED).sum()) for batch in micro_batches]
        if self._loss_mean == "micro_batch":
            most = max(self.group.gather(len(counts)))
            over_ranks = self._sum_of(counts + [0] * (most - len(counts)))
            return [over_ranks[index].clamp_min(1) * most for index in range(len(counts))]
        if self._loss_mean == "global" and self.group.size > 1:
            return [self._sum_of([sum(counts)])[0].clamp_min(1)] * len(counts)
        return [float(max(1, sum(counts)))] * len(counts)

    def _sum_of(self, counts: list[int]) -> Tensor:
        """Counts of tokens over all ranks, float32 on the device."""
        return self.group.sum(torch.tensor(counts, device=self.model.device)).float()

    def _seed_dropout(self, number: int, micro_batch: int) -> None:
        # Keyed by place in the run: a resumed run draws the same numbers, with no generator state to save.
        rank = f":{self.group.rank}" if self.group.rank else ""
        key = f"{self.seed}:{number}:{micro_batch}{rank}".encode()
        torch.manual_seed(xxhash.xxh3_64_intdigest(key) >> 1)

    def _forward_backward(self, number: int, batch: TokenBatch, divisor: float | Tensor, *, last: bool) -> Tensor:
        batch = batch.to(self.model.device)
        # Gradients go over the network once a step, with the last micro-batch.
        with nullcontext() if last else collecting_gradients(self._copy):
            hidden_BLD = self._copy(batch.inputs_BL, mask=attention_mask(batch))
            loss = cross_entropy(hidden_BLD, self.model.head_weight_VD, batch.labels_BL, divisor)
            if last:
                pulse().stamp(number, "backward")
            (loss * self.scaler.scale if self._scales_loss else loss).backward()
        return loss.detach()

    def _agree(self, loss: Tensor, stop: bool) -> tuple[float, float, bool]:
        """The global loss, this rank's own, and whether some rank was told to stop."""
        if self.group.size == 1:
            value = loss.item()
            return value, value, stop
        local = loss.item()
        total, stops = self.group.sum(torch.stack([loss, torch.full_like(loss, stop)])).tolist()
        if self._loss_mean in ("rank_summed", "rank_averaged"):
            return total / self.group.size, local, stops > 0
        return total, total, stops > 0

    def _finish_gradients(self) -> tuple[float | None, bool]:
        """Unscale, average and clip; the norm where it is known, and whether a gradient is not finite."""
        factor = 1 / self.scaler.scale if self._scales_loss else 1.0
        if self._loss_mean == "rank_averaged":
            factor /= self.group.size
        if factor != 1:
            self.optimizer.scale_gradients(factor)
        if self.max_grad_norm is None and not self.scaler.dynamic:
            return None, False
        norm = self.optimizer.gradient_norm()
        if self.max_grad_norm is not None and math.isfinite(norm):
            self.optimizer.clip_gradients(self.max_grad_norm, norm)
        return norm, not math.isfinite(norm)


_NOT_FINITE = (
    "lower the learning rate (lr_schedule.learning_rate) or clip gradients (runner_wrapper.use_clip_grad); "
    "with float16, use bfloat16 or a dynamic scale_sense; the last checkpoint is as it was"
)


def attention_mask(batch: TokenBatch) -> Tensor | None:
    """Which keys each query sees, boolean ``(B, 1, L, L)``; None where plain causal attention gives the same.

    Keys that are padding are hidden, in the middle of a row too, as the original does. A query always sees
    itself: a row of the mask without any key would give NaN.
    """
    if not batch.needs_key_mask:
        return None
    length = batch.inputs_BL.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=batch.inputs_BL.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=causal.device)
    return (causal & batch.keep_BL[:, None, None, :]) | itself
