"""Loss scaling: keeps small float16 gradients above zero (arXiv:1710.03740)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from runformer.config.task import LossScaleOptions
from runformer.errors import CheckpointError, ConfigError


class LossScaler:
    """The factor on the loss before the backward pass, and how it follows overflows.

    A fixed scale never changes. A dynamic one follows MindSpore's ``DynamicLossScaleUpdateCell``: an
    overflow divides it by ``factor``, down to 1; ``window`` steps without one multiply it by ``factor``.

    Raises:
        ConfigError: the scale is not positive, or a dynamic scale's factor or window is below 1.
    """

    def __init__(self, options: LossScaleOptions) -> None:
        _check(options)
        self._options = options
        self.dynamic = options.dynamic
        self._good_steps = 0
        self.scale = float(options.initial)

    def update(self, overflow: bool) -> None:
        """Count one step; ``overflow`` says that its gradients were not finite and that it was skipped."""
        if not self._options.dynamic:
            return
        self._good_steps = 0 if overflow else self._good_steps + 1
        if overflow:
            self.scale = max(self.scale / self._options.factor, 1.0)
        elif self._good_steps == self._options.window:
            self.scale *= self._options.factor
            self._good_steps = 0

    def state_dict(self) -> dict[str, float | int]:
        """``scale`` and ``good_steps``, as JSON can hold them."""
        return {"scale": self.scale, "good_steps": self._good_steps}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Go on from ``state_dict()``. A fixed scale stays what the configuration says.

        Raises:
            CheckpointError: a key is missing or its value cannot be one.
        """
        scale, good_steps = _number(state, "scale"), _number(state, "good_steps")
        if not self._options.dynamic:
            return
        # A shorter window than the saved run's must not be jumped over, or the scale would never grow again.
        self.scale, self._good_steps = float(scale), min(int(good_steps), self._options.window - 1)


def _check(options: LossScaleOptions) -> None:
    if not (math.isfinite(options.initial) and options.initial > 0):
        raise ConfigError(f"runner_wrapper.scale_sense: a loss scale of {options.initial} is not a positive number")
    if not options.dynamic:
        return
    if not (math.isfinite(options.factor) and options.factor >= 1):
        raise ConfigError(f"runner_wrapper.scale_sense.scale_factor: {options.factor} is below 1")
    if options.window < 1:
        raise ConfigError(f"runner_wrapper.scale_sense.scale_window: {options.window} is below 1")


def _number(state: Mapping[str, float | int], key: str) -> float | int:
    value = state.get(key)
    lowest = 0 if key == "good_steps" else math.ulp(0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value < math.inf:
        raise CheckpointError(f"the saved loss scaler has {key} = {value!r}", hint="resume from another checkpoint")
    return value
