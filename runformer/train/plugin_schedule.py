"""A learning-rate curve of a plug-in."""

from __future__ import annotations

import math
from collections.abc import Callable

from runformer.config.task import PluginScheduleOptions
from runformer.errors import ConfigError, TrainingError
from runformer.plugins.failures import blaming
from runformer.plugins.registry import find


def make_plugin_schedule(
    options: PluginScheduleOptions, *, steps_per_epoch: int, epochs: int
) -> Callable[[int], float]:
    """The learning rate of each optimizer step of a run, from the 0-based step.

    Raises:
        ConfigError: the plug-in fails, or makes something that cannot be called. The curve itself raises
            TrainingError where it fails or gives no finite number of 0 or more.
    """
    plugin = find("schedule", options.kind)
    total = options.total_steps or epochs * steps_per_epoch
    with blaming(plugin, ConfigError, "lr_schedule"):
        curve = plugin.target(total, steps_per_epoch, **options.parameters)
    if not callable(curve):
        text = f"{plugin.place}: the {plugin} gave an object of type {type(curve).__name__}"
        raise ConfigError(f"{text}, not a function from a step to its learning rate")

    def checked(step: int) -> float:
        with blaming(plugin, TrainingError, f"optimizer step {step}"):
            rate = float(curve(step))
        if not (math.isfinite(rate) and rate >= 0):
            text = f"the {plugin} ({plugin.place}) gives the learning rate {rate} for optimizer step {step}"
            raise TrainingError(text, hint="it must be a finite number, at least 0")
        return rate

    return checked
