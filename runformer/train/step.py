"""One training step: forward and backward over the micro-batches, clip, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from runformer.data import IGNORED
from runformer.data.batch import TokenBatch
from runformer.errors import TrainingError
from runformer.models.decoder import CausalLM
from runformer.train.loss import cross_entropy
from runformer.train.loss_scale import LossScaler
from runformer.train.optimizer import NamedOptimizer


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did.

    Attributes:
        loss: mean over the counted tokens of the global batch.
        grad_norm: before clipping; None where clipping is off.
        overflow: a gradient was not finite, and the update was left out.
        loss_scale: the loss scale that the step used.
        tokens: input positions in the batch, padding included.
    """

    loss: float
    grad_norm: float | None
    overflow: bool
    loss_scale: float
    tokens: int


class TrainStep:
    """Turns the micro-batches of one step into one update of the model."""

    def __init__(
        self, model: CausalLM, optimizer: NamedOptimizer, scaler: LossScaler, max_grad_norm: float | None, seed: int
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        # Only float16 gradients can underflow; a scale would leave all others as they are.
        self._scales_loss = model.precision.compute == "float16"

    def __call__(self, number: int, micro_batches: Sequence[TokenBatch], learning_rate: float) -> StepResult:
        """Learn from one global batch, as step ``number`` of the run (from 1).

        Raises:
            TrainingError: the loss, or without dynamic loss scaling a gradient, is not finite.
        """
        # Normalised by the tokens of the whole batch, so that accumulation never changes the curve.
        counted = max(1, sum(int((batch.labels_BL != IGNORED).sum()) for batch in micro_batches))
        losses = []
        for index, batch in enumerate(micro_batches):
            self._seed_dropout(number, index)
            losses.append(self._forward_backward(batch, counted))
        loss = torch.stack(losses).sum().item()
        if not math.isfinite(loss):
            raise TrainingError(f"step {number}: the loss is {loss}", hint=_NOT_FINITE)
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
        tokens = sum(batch.inputs_BL.numel() for batch in micro_batches)
        return StepResult(loss, norm if self.max_grad_norm is not None else None, overflow, loss_scale, tokens)

    def _seed_dropout(self, number: int, micro_batch: int) -> None:
        # Keyed by place in the run: a resumed run draws the same numbers, with no generator state to save.
        key = f"{self.seed}:{number}:{micro_batch}".encode()
        torch.manual_seed(xxhash.xxh3_64_intdigest(key) >> 1)

    def _forward_backward(self, batch: TokenBatch, counted: int) -> Tensor:
        batch = batch.to(self.model.device)
        hidden_BLD = self.model(batch.inputs_BL, mask=attention_mask(batch))
        loss = cross_entropy(hidden_BLD, self.model.head_weight_VD, batch.labels_BL, float(counted))
        (loss * self.scaler.scale if self._scales_loss else loss).backward()
        return loss.detach()

    def _finish_gradients(self) -> tuple[float | None, bool]:
        """Unscale and clip; the norm where it is known, and whether a gradient is not finite."""
        if self._scales_loss:
            self.optimizer.scale_gradients(1 / self.scaler.scale)
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
