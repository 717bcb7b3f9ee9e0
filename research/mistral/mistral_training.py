"""One plug-in of each other kind, as small as it can be: an optimizer, a schedule, a callback, a data handler."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from runformer import plugins


@plugins.optimizer("Lion")
class Lion(torch.optim.Optimizer):
    """Lion (arXiv:2302.06675, algorithm 2): the sign of a momentum, and decoupled weight decay.

    With gradient g and momentum m, of a parameter's shape and dtype: the step is
    ``θ ← θ − lr · (sign(β₁ m + (1 − β₁) g) + λ θ)``, and then ``m ← β₂ m + (1 − β₂) g``.

    Args:
        params: parameter groups; ``weight_decay`` of each is λ.
        lr: learning rate; the paper advises a third to a tenth of AdamW's.
        betas: β₁ and β₂, in [0, 1).

    Raises:
        ValueError: betas are no such numbers.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"optimizer.betas must be two numbers in [0, 1), not {betas}")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "the run computes the gradients"
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                gradient, state = parameter.grad, self.state[parameter]
                if gradient is None:
                    continue
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                direction = momentum.lerp(gradient, 1 - beta1).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                momentum.lerp_(gradient, 1 - beta2)


@plugins.schedule("InverseSquareRootLR")
def inverse_square_root(
    total_steps: int, steps_per_epoch: int, learning_rate: float, warmup_steps: int = 0
) -> Callable[[int], float]:
    """A straight warm-up to ``learning_rate``, then a fall with the root of the step (arXiv:1706.03762, equation 3).

    It does not depend on the length of the run, so a longer one can go on from a shorter one's end.
    """
    del total_steps, steps_per_epoch
    warmup = max(1, warmup_steps)
    return lambda step: learning_rate * min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))


@plugins.callback("StopWhenLossBelow")
class StopWhenLossBelow:
    """Ends the run once the mean loss of the last ``steps`` steps is below ``loss``."""

    def __init__(self, loss: float, steps: int = 1) -> None:
        self.threshold = loss
        self.recent: deque[float] = deque(maxlen=steps)

    def on_step_end(self, facts: plugins.StepFacts) -> bool | None:
        """Take the step's loss into account."""
        self.recent.append(facts.loss)
        low = sum(self.recent) / len(self.recent) < self.threshold
        return plugins.STOP if low and len(self.recent) == self.recent.maxlen else None


@plugins.data_handler("MaskPrompt")
class MaskPrompt:
    """Leaves the prompt out of the loss: the labels up to the last ``end`` token, itself included.

    Args:
        end: token that ends a prompt, such as Mistral's [/INST].
        ignored: label that does not count; model.model_config.ignore_token_id.
    """

    def __init__(self, end: int, ignored: int = -100) -> None:
        self.end, self.ignored = end, ignored

    def __call__(self, record: dict[str, NDArray[np.integer]]) -> dict[str, NDArray[np.integer]]:
        """The record with labels; those it has, else its tokens, are what is masked."""
        tokens = record["input_ids"]
        labels = record.get("labels", tokens).astype(np.int64)
        ends = np.flatnonzero(tokens == self.end)
        labels[: ends[-1] + 1 if len(ends) else 0] = self.ignored
        return {**record, "labels": labels}
