"""The loss scaler against MindSpore's own recurrence."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runformer.config.task import LossScaleOptions
from runformer.errors import CheckpointError, ConfigError
from runformer.train.loss_scale import LossScaler


def scaler(initial: float = 65536.0, factor: float = 2.0, window: int = 3) -> LossScaler:
    return LossScaler(LossScaleOptions(initial=initial, dynamic=True, factor=factor, window=window))


def mindspore_scales(initial: float, factor: float, window: int, overflows: list[bool]) -> list[float]:
    """DynamicLossScaleUpdateCell as MindSpore states it: by iteration numbers, not by a count of good steps."""
    scale, last_overflow, scales = initial, 0, []
    for iteration, overflow in enumerate(overflows, start=1):
        grow = iteration - last_overflow >= window
        if overflow:
            scale = max(scale / factor, 1.0)
        elif grow:
            scale *= factor
        if overflow or grow:
            last_overflow = iteration
        scales.append(scale)
    return scales


@given(
    initial=st.floats(1.0, 2.0**32),
    factor=st.sampled_from([2.0, 1.0, 1.5, 4.0]),
    window=st.integers(1, 6),
    overflows=st.lists(st.booleans(), max_size=60),
)
def test_dynamic_scale_follows_mindspore(initial, factor, window, overflows):
    ours = scaler(initial, factor, window)
    scales = []
    for overflow in overflows:
        ours.update(overflow)
        scales.append(ours.scale)
    assert scales == mindspore_scales(initial, factor, window, overflows)


@given(overflows=st.lists(st.booleans(), max_size=30), cut=st.integers(0, 30))
def test_a_saved_scaler_goes_on_as_if_never_stopped(overflows, cut):
    whole, first, second = scaler(), scaler(), scaler(initial=8.0)
    for overflow in overflows:
        whole.update(overflow)
    for overflow in overflows[:cut]:
        first.update(overflow)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for overflow in overflows[cut:]:
        second.update(overflow)
    assert second.state_dict() == whole.state_dict()


def test_a_fixed_scale_never_changes():
    fixed = LossScaler(LossScaleOptions(initial=64.0))
    for overflow in (True, False) * 2000:
        fixed.update(overflow)
    fixed.load_state_dict({"scale": 2.0, "good_steps": 0})
    assert fixed.scale == 64.0


def test_the_scale_never_falls_below_one():
    low = scaler(initial=1.0)
    low.update(overflow=True)
    assert low.scale == 1.0


def test_a_shorter_window_after_a_resume_still_grows():
    short = scaler(window=2)
    short.load_state_dict({"scale": 4.0, "good_steps": 900})
    short.update(overflow=False)
    assert short.scale == 8.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LossScaleOptions(initial=0.0), "scale_sense: a loss scale of 0.0 is not a positive number"),
        (LossScaleOptions(initial=math.inf), "scale_sense: a loss scale of inf is not a positive number"),
        (LossScaleOptions(dynamic=True, factor=0.5), "scale_sense.scale_factor: 0.5 is below 1"),
        (LossScaleOptions(dynamic=True, window=0), "scale_sense.scale_window: 0 is below 1"),
    ],
)
def test_options_that_cannot_work_are_named(options: LossScaleOptions, message: str):
    with pytest.raises(ConfigError) as caught:
        LossScaler(options)
    assert caught.value.message == f"runner_wrapper.{message}"


@pytest.mark.parametrize(
    "state",
    [
        {"good_steps": 1},
        {"scale": 2.0},
        {"scale": math.nan, "good_steps": 1},
        {"scale": 0.0, "good_steps": 1},
        {"scale": "2", "good_steps": 1},
        {"scale": 2.0, "good_steps": -1},
        {"scale": 2.0, "good_steps": True},
    ],
)
def test_a_damaged_state_is_a_checkpoint_error_and_changes_nothing(state):
    ours = scaler()
    with pytest.raises(CheckpointError, match="the saved loss scaler has"):
        ours.load_state_dict(state)
    assert ours.state_dict() == {"scale": 65536.0, "good_steps": 0}
