"""Learning-rate schedules: MindFormers' curves under its names, by optimizer step.

Every curve is a function of the 0-based step, computed in float32 in MindFormers' order of operations:
a double-precision curve differs from its logs where two terms cancel (the last steps of a decay, the
return of a cosine). Quirks are kept: the first step of a warm-up trains with ``warmup_lr_init``, and a
polynomial or a stable-then-decay curve goes below zero when the run outlasts its decay.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping

import numpy as np

from runformer.config.task import PluginScheduleOptions, ScheduleOptions
from runformer.errors import ConfigError
from runformer.train.plugin_schedule import make_plugin_schedule

Curve = Callable[[int], np.float32]

f32 = np.float32
_ZERO, _HALF, _ONE, _TWO, _PI = f32(0.0), f32(0.5), f32(1.0), f32(2.0), f32(math.pi)
_LARGEST = 1e30  # products of two parameters and a step still fit in float32

# Keys whose value -1 means "not given", as total_steps: -1 does in nearly every published recipe.
_LENGTHS = frozenset({"total_steps", "warmup_steps", "warmup_epochs", "warmup_ratio", "decay_steps", "decay_ratio"})


def make_schedule(
    options: ScheduleOptions | PluginScheduleOptions, *, steps_per_epoch: int, epochs: int
) -> Callable[[int], float]:
    """The learning rate of each optimizer step of a run.

    Args:
        options: a plug-in's curve, or the curve's MindFormers name and its parameters; parameters that it does not
            take are ignored, as the original ignores them. Those it takes may be left out unless said otherwise:

            * ``learning_rate`` (required) after a warm-up from ``warmup_lr_init`` (0), whose length is
              ``warmup_ratio`` of the run, else ``warmup_epochs``, else ``warmup_steps``, else none;
            * ``total_steps``: absent or -1 means ``epochs * steps_per_epoch``;
            * ``base_lr`` and ``t_max`` or ``t_0`` (required) for the two ``CosineAnnealing`` curves.
        steps_per_epoch: optimizer steps in one pass over the data.
        epochs: passes over the data.

    Returns:
        A function from the 0-based optimizer step to the learning rate, a float32 value where the curve is built in.

    Raises:
        ConfigError: the curve is unknown, or a parameter is missing or out of range.
    """
    if isinstance(options, PluginScheduleOptions):
        return make_plugin_schedule(options, steps_per_epoch=steps_per_epoch, epochs=epochs)
    build = _CURVES.get(options.kind)
    if build is None:
        raise _unknown_kind(options.kind)
    curve = build(_Parameters(options.parameters, steps_per_epoch, epochs))
    return lambda step: float(curve(step))


def _unknown_kind(kind: str) -> ConfigError:
    by_lower_case = {name.lower(): name for name in _CURVES}
    nearest = difflib.get_close_matches(kind.lower(), by_lower_case, n=1, cutoff=0.5)
    hint = f"known types are {', '.join(sorted(_CURVES))}"
    if nearest:
        hint = f"did you mean {by_lower_case[nearest[0]]}? {hint}"
    return ConfigError(f"lr_schedule.type: there is no learning-rate schedule named '{kind}'", hint=hint)


class _Parameters:
    """The keys of one ``lr_schedule`` section, checked as they are read."""

    def __init__(self, values: Mapping[str, float], steps_per_epoch: int, epochs: int) -> None:
        self._values = values
        self._steps_per_epoch = steps_per_epoch
        self.total_steps = self.count("total_steps", epochs * steps_per_epoch, low=1)
        self.warmup_steps = self._warmup_steps()

    def number(
        self, key: str, default: float | None = None, *, low: float = -math.inf, high: float = math.inf
    ) -> float:
        """The value of ``key``, or ``default``; without a default the key is required."""
        value = self._given(key)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(f"lr_schedule.{key} is missing", hint=f"this schedule needs {key}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            raise ConfigError(f"lr_schedule.{key}: {value!r} is not a finite number")
        if not low <= value <= high:
            raise ConfigError(f"lr_schedule.{key}: {value:g} is {_limits(low, high)}")
        return value

    def count(self, key: str, default: int | None = None, *, low: int = 0) -> int:
        """As ``number``, for a whole number of steps."""
        value = self.number(key, default, low=low)
        if value != int(value):
            raise ConfigError(f"lr_schedule.{key}: {value:g} is not a whole number of steps")
        return int(value)

    def share(self, ratio_key: str, steps_key: str, default: int | None = None) -> int:
        """A part of the run: as a ratio of ``total_steps``, which wins, or as a number of steps."""
        if self._given(ratio_key) is not None:
            return int(self.total_steps * self.number(ratio_key, low=0.0, high=1.0))
        return self.count(steps_key, default)

    def _warmup_steps(self) -> int:
        if self._given("warmup_ratio") is None and self._given("warmup_epochs") is not None:
            return int(self.number("warmup_epochs", low=0.0) * self._steps_per_epoch)
        return self.share("warmup_ratio", "warmup_steps", 0)

    def _given(self, key: str) -> float | None:
        value = self._values.get(key)
        return None if key in _LENGTHS and value == -1 else value


def _limits(low: float, high: float) -> str:
    return f"below {low:g}" if math.isinf(high) else f"not between {low:g} and {high:g}"


def _cos(angle: np.float32) -> np.float32:
    # Rounded once from double precision: numpy's own float32 cosine is a unit off on some processors.
    return f32(math.cos(float(angle)))


def _half_cosine(start: float, end: float, angle: np.float32) -> np.float32:
    """From ``start`` at angle 0 to ``end`` at pi."""
    return f32(end) + f32(start - end) * (_HALF * (_ONE + _cos(angle)))


def _after_warm_up(parameters: _Parameters, after: Curve) -> Curve:
    """A straight rise from ``warmup_lr_init`` to ``learning_rate``, then ``after``."""
    steps = parameters.warmup_steps
    initial = parameters.number("warmup_lr_init", 0.0, low=0.0)
    rise = f32(_peak(parameters) - initial)

    def curve(step: int) -> np.float32:
        return f32(initial) + rise * (f32(step) / f32(steps)) if step < steps else after(step)

    return curve


def _peak(parameters: _Parameters) -> float:
    return parameters.number("learning_rate", low=0.0)


def _constant(parameters: _Parameters) -> Curve:
    peak = f32(_peak(parameters))
    return _after_warm_up(parameters, lambda _: peak)


def _linear(parameters: _Parameters) -> Curve:
    peak, total = f32(_peak(parameters)), f32(parameters.total_steps)
    length = f32(max(1, parameters.total_steps - parameters.warmup_steps))
    return _after_warm_up(parameters, lambda step: peak * max(_ZERO, (total - f32(step)) / length))


def _cosine(parameters: _Parameters) -> Curve:
    turns = f32(math.pi * 2.0 * parameters.number("num_cycles", 0.5, low=0.0))
    return _cosine_by_angle(parameters, lambda progress: turns * progress)


def _cosine_with_restarts(parameters: _Parameters) -> Curve:
    cycles = f32(parameters.number("num_cycles", 1.0, low=0.0))
    return _cosine_by_angle(parameters, lambda progress: _PI * np.fmod(cycles * progress, _ONE))


def _cosine_by_angle(parameters: _Parameters, angle: Callable[[np.float32], np.float32]) -> Curve:
    """A cosine of ``angle(progress)``, cut to ``lr_end`` from ``decay_steps`` (counted from the run's start) on."""
    peak, end = _peak(parameters), parameters.number("lr_end", 0.0, low=0.0)
    last = parameters.share("decay_ratio", "decay_steps", parameters.total_steps)
    warmup = f32(parameters.warmup_steps)
    # decay_steps cuts the curve short but does not squeeze it: progress is still over the whole run.
    length = f32(max(1, parameters.total_steps - parameters.warmup_steps))

    def decay(step: int) -> np.float32:
        return f32(end) if step >= last else _half_cosine(peak, end, angle((f32(step) - warmup) / length))

    return _after_warm_up(parameters, decay)


def _polynomial(parameters: _Parameters) -> Curve:
    end, power = f32(parameters.number("lr_end", 1e-7, low=0.0)), f32(parameters.number("power", 1.0, low=0.0))
    total, warmup = parameters.total_steps, parameters.warmup_steps
    steps = parameters.count("decay_steps", max(1, total - warmup), low=1)
    span = f32(_peak(parameters)) - end

    def decay(step: int) -> np.float32:
        remaining = _ONE - (f32(step) - f32(warmup)) / f32(steps)
        return end if step > total else span * remaining**power + end

    if warmup + steps < total:
        _check_beyond_decay(decay, total, total - warmup - steps)
    return _after_warm_up(parameters, decay)


def _check_beyond_decay(decay: Curve, total: int, steps_beyond: int) -> None:
    # What remains is negative there: a fractional power of it does not exist, a high one overflows.
    with np.errstate(all="ignore"):
        last = decay(total)
    if not np.isfinite(last):
        raise ConfigError(
            f"lr_schedule.decay_steps: the decay ends {steps_beyond} steps before the run, and goes on to {last}",
            hint="leave decay_steps out, or use a power of 1 or 2",
        )


def _stable_then_decay(parameters: _Parameters) -> Curve:
    peak, end = f32(_peak(parameters)), f32(parameters.number("lr_end", 1e-7, low=0.0))
    start = parameters.share("decay_start_ratio", "decay_start_steps")
    length = f32(max(1, parameters.total_steps - start))

    def decay(step: int) -> np.float32:
        return peak if step < start else peak + (end - peak) * ((f32(step) - f32(start)) / length)

    return _after_warm_up(parameters, decay)


def _constant_then_cool_down(parameters: _Parameters) -> Curve:
    """Keep the peak, a half cosine to ``lr_end1``, keep that, then ``lr_end2``: the curve of DeepSeek-V3."""
    peak, end1 = _peak(parameters), parameters.number("lr_end1", 0.0, low=0.0)
    # A last rate of 0 counts as unset in the original, so the curve cannot end on 0 after another end.
    end2 = parameters.number("lr_end2", 0.0, low=0.0) or end1
    start = parameters.warmup_steps + parameters.count("keep_steps", 0)
    length = parameters.share("decay_ratio", "decay_steps")
    last = start + length + parameters.count("final_steps", 0)

    def decay(step: int) -> np.float32:
        if step < start:
            return f32(peak)
        if step < start + length:
            return _half_cosine(peak, end1, _PI * ((f32(step) - f32(start)) / f32(length)))
        return f32(end1) if step < last else f32(end2)

    return _after_warm_up(parameters, decay)


def _annealing(base: float, floor: float, position: int, period: int) -> np.float32:
    """SGDR's cosine (arXiv:1608.03983, equation 5) at ``position`` of ``period``."""
    angle = _PI * f32(position) / f32(period)
    return f32(floor) + f32(base - floor) * (_ONE + _cos(angle)) / _TWO


def _cosine_annealing(parameters: _Parameters) -> Curve:
    base, floor = parameters.number("base_lr", low=0.0), parameters.number("eta_min", 0.0, low=0.0)
    period = parameters.count("t_max", low=1)
    return lambda step: _annealing(base, floor, step, period)


def _cosine_annealing_with_restarts(parameters: _Parameters) -> Curve:
    base, floor = parameters.number("base_lr", low=0.0), parameters.number("eta_min", 0.0, low=0.0)
    first, growth = parameters.count("t_0", low=1), parameters.count("t_mult", 1, low=1)

    def curve(step: int) -> np.float32:
        position, period = _restarted(step, first, growth)
        return _annealing(base, floor, position, period)

    return curve


def _restarted(step: int, first: int, growth: int) -> tuple[int, int]:
    """The position of ``step`` in its cycle and that cycle's length; each is ``growth`` times the one before."""
    if growth == 1:
        return step % first, first
    period = first
    while step >= period:
        step, period = step - period, period * growth
    return step, period


_CURVES: Mapping[str, Callable[[_Parameters], Curve]] = {
    "ConstantWarmUpLR": _constant,
    "ConstantWithCoolDownLR": _constant_then_cool_down,
    "LinearWithWarmUpLR": _linear,
    "CosineWithWarmUpLR": _cosine,
    "CosineWithRestartsAndWarmUpLR": _cosine_with_restarts,
    "PolynomialWithWarmUpLR": _polynomial,
    "WarmUpStableDecayLR": _stable_then_decay,
    "CosineAnnealingLR": _cosine_annealing,
    "CosineAnnealingWarmRestarts": _cosine_annealing_with_restarts,
}
