"""Learning-rate schedules against the tables that MindFormers itself computed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runformer.config.task import ScheduleOptions
from runformer.errors import ConfigError
from runformer.train.schedule import make_schedule

# Last units of float32 that MindFormers' own arithmetic loses on the way (a stable phase computed as x * step / step).
UNIT = 1.4e-7

WARM_UP_KINDS = [
    "ConstantWarmUpLR",
    "LinearWithWarmUpLR",
    "CosineWithWarmUpLR",
    "CosineWithRestartsAndWarmUpLR",
    "PolynomialWithWarmUpLR",
]


def rates(kind: str, parameters: Mapping[str, float], steps: int = 41, *, steps_per_epoch: int = 16, epochs: int = 2):
    schedule = make_schedule(ScheduleOptions(kind, parameters), steps_per_epoch=steps_per_epoch, epochs=epochs)
    return [schedule(step) for step in range(steps)]


def test_every_table_of_mindformers_is_reproduced(oracle_dir: Path):
    tables = json.loads((oracle_dir / "lr_tables/lr_tables.json").read_text())
    for table in tables:
        computed = rates(table["type"], table["params"])
        np.testing.assert_allclose(
            computed, table["lr"], rtol=UNIT, atol=1e-12, err_msg=f"{table['type']} {table['params']}"
        )
    assert len(tables) == 27


def test_cosines_are_bit_for_bit_those_of_mindformers(oracle_dir: Path):
    tables = json.loads((oracle_dir / "lr_tables/lr_tables.json").read_text())
    cosines = [table for table in tables if table["type"].startswith("Cosine")]
    assert len(cosines) == 14
    for table in cosines:
        assert rates(table["type"], table["params"]) == table["lr"]


@pytest.mark.parametrize(
    ("case", "kind", "parameters", "steps_per_epoch", "epochs"),
    [
        (
            "llama_pretrain",
            "CosineWithWarmUpLR",
            {"learning_rate": 3e-3, "lr_end": 3e-4, "warmup_ratio": 0.125, "total_steps": -1},
            16,
            2,
        ),
        (
            "dp2_mean",
            "CosineWithWarmUpLR",
            {"learning_rate": 3e-3, "lr_end": 3e-4, "warmup_ratio": 0.125, "total_steps": -1},
            8,
            4,
        ),
        ("qwen2_finetune_mask", "LinearWithWarmUpLR", {"learning_rate": 1e-3, "warmup_steps": 0}, 16, 2),
    ],
)
def test_rates_of_whole_runs(oracle_dir: Path, case: str, kind: str, parameters, steps_per_epoch: int, epochs: int):
    rows = [json.loads(line) for line in (oracle_dir / case / "expected.jsonl").read_text().splitlines()]
    computed = rates(kind, parameters, len(rows), steps_per_epoch=steps_per_epoch, epochs=epochs)
    assert computed == [row["lr"] for row in rows]


@pytest.mark.parametrize("absent", [{}, {"total_steps": -1}, {"total_steps": None}])
def test_total_steps_follow_from_the_run(absent):
    whole = rates("LinearWithWarmUpLR", {"learning_rate": 1e-3, "total_steps": 12}, steps_per_epoch=99)
    assert rates("LinearWithWarmUpLR", {"learning_rate": 1e-3, **absent}, steps_per_epoch=4, epochs=3) == whole


def first_full_step(**parameters: float) -> int:
    values = rates("ConstantWarmUpLR", {"learning_rate": 1.0, **parameters}, 40, steps_per_epoch=10, epochs=4)
    return values.index(1.0)


def test_warm_up_is_a_ratio_before_epochs_before_steps():
    assert first_full_step(warmup_steps=7) == 7
    assert first_full_step(warmup_steps=7, warmup_epochs=2) == 20
    assert first_full_step(warmup_steps=7, warmup_epochs=2, warmup_ratio=0.1) == 4
    assert first_full_step(warmup_steps=7, warmup_epochs=2, warmup_ratio=0) == 0
    assert first_full_step(warmup_steps=7, warmup_epochs=-1, warmup_ratio=-1) == 7
    assert first_full_step() == 0


def test_a_warm_up_longer_than_the_run_never_ends():
    values = rates("CosineWithWarmUpLR", {"learning_rate": 1e-3, "warmup_steps": 2000}, 32)
    np.testing.assert_allclose(values, [1e-3 * step / 2000 for step in range(32)], rtol=UNIT)


def test_keys_that_a_curve_does_not_take_are_ignored():
    plain = rates("ConstantWarmUpLR", {"learning_rate": 1e-3})
    assert rates("ConstantWarmUpLR", {"learning_rate": 1e-3, "lr_end": 0.0, "num_cycles": 7}) == plain


def test_cool_down_to_zero_is_unset_in_the_original():
    parameters = {"learning_rate": 1e-3, "decay_steps": 4, "lr_end1": 1e-4, "final_steps": 2, "lr_end2": 0.0}
    assert rates("ConstantWithCoolDownLR", parameters)[10] == np.float32(1e-4)


def test_no_decay_steps_at_all_jump_to_the_end():
    values = rates("ConstantWithCoolDownLR", {"learning_rate": 1e-3, "keep_steps": 3, "decay_steps": 0}, 5)
    assert values[2:] == [np.float32(1e-3), 0.0, 0.0]


@pytest.mark.parametrize("wrong", ["CosineWithWarmupLR", "cosinewithwarmuplr", "CosineWithWarmUp"])
def test_an_unknown_schedule_names_the_nearest(wrong: str):
    with pytest.raises(ConfigError, match=f"'{wrong}'") as caught:
        rates(wrong, {"learning_rate": 1e-3})
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean CosineWithWarmUpLR? known types are ConstantWarmUpLR, ")


def test_a_schedule_like_no_other_lists_them():
    with pytest.raises(ConfigError) as caught:
        rates("x", {})
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("known types are ")


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("ConstantWarmUpLR", {}, "lr_schedule.learning_rate is missing"),
        ("CosineAnnealingLR", {"learning_rate": 1.0, "t_max": 5}, "lr_schedule.base_lr is missing"),
        ("CosineAnnealingLR", {"base_lr": 1.0}, "lr_schedule.t_max is missing"),
        ("CosineAnnealingWarmRestarts", {"base_lr": 1.0}, "lr_schedule.t_0 is missing"),
        ("CosineAnnealingWarmRestarts", {"base_lr": 1.0, "t_0": 0}, "lr_schedule.t_0: 0 is below 1"),
        ("WarmUpStableDecayLR", {"learning_rate": 1.0}, "lr_schedule.decay_start_steps is missing"),
        ("ConstantWithCoolDownLR", {"learning_rate": 1.0}, "lr_schedule.decay_steps is missing"),
        ("ConstantWarmUpLR", {"learning_rate": "1e-3"}, "lr_schedule.learning_rate: '1e-3' is not a finite number"),
        ("ConstantWarmUpLR", {"learning_rate": True}, "lr_schedule.learning_rate: True is not a finite number"),
        ("ConstantWarmUpLR", {"learning_rate": math.nan}, "lr_schedule.learning_rate: nan is not a finite number"),
        ("ConstantWarmUpLR", {"learning_rate": 10**400}, "is not a finite number"),
        ("ConstantWarmUpLR", {"learning_rate": -1.0}, "lr_schedule.learning_rate: -1 is below 0"),
        ("ConstantWarmUpLR", {"learning_rate": 1.0, "warmup_ratio": 1.5}, "warmup_ratio: 1.5 is not between 0 and 1"),
        ("ConstantWarmUpLR", {"learning_rate": 1.0, "warmup_steps": 2.5}, "warmup_steps: 2.5 is not a whole number"),
        ("ConstantWarmUpLR", {"learning_rate": 1.0, "total_steps": 0}, "lr_schedule.total_steps: 0 is below 1"),
        (
            "PolynomialWithWarmUpLR",
            {"learning_rate": 1.0, "power": 0.5, "decay_steps": 8},
            "ends 24 steps before the run",
        ),
    ],
)
def test_a_bad_parameter_is_named(kind: str, parameters, message: str):
    with pytest.raises(ConfigError) as caught:
        rates(kind, parameters)
    assert message in caught.value.message


lengths = st.integers(0, 60)
small_rates = st.floats(1e-7, 1.0)


@given(
    kind=st.sampled_from(WARM_UP_KINDS),
    peak=small_rates,
    initial=small_rates,
    end=small_rates,
    warmup=lengths,
    total=st.integers(1, 60),
)
def test_rates_stay_between_start_peak_and_end(kind, peak, initial, end, warmup, total):
    parameters = {
        "learning_rate": peak,
        "warmup_lr_init": initial,
        "lr_end": end,
        "warmup_steps": warmup,
        "total_steps": total,
    }
    values = rates(kind, parameters, 80)
    lowest = 0.0 if kind == "LinearWithWarmUpLR" else min(peak, initial, end)
    highest = max(peak, initial, end)
    rounding = 2e-7 * highest
    assert all(lowest - rounding <= value <= highest + rounding for value in values)
    if warmup:
        assert values[0] == np.float32(initial)


@given(base=small_rates, floor=small_rates, first=st.integers(1, 9), growth=st.integers(1, 4))
def test_every_restart_returns_to_the_base_rate(base, floor, first, growth):
    parameters = {"base_lr": base, "eta_min": floor, "t_0": first, "t_mult": growth}
    values = rates("CosineAnnealingWarmRestarts", parameters, 200)
    starts = {0}
    start, period = 0, first
    while (start := start + period) < 200:
        starts.add(start)
        period *= growth
    assert all(values[step] == pytest.approx(base, abs=2e-7 * max(base, floor)) for step in starts)


KEYS = ["lr_end", "warmup_steps", "warmup_ratio", "warmup_lr_init", "total_steps", "decay_steps", "decay_ratio"]
KEYS += ["decay_start_steps", "power", "num_cycles", "keep_steps", "eta_min", "t_mult"]


@given(
    kind=st.sampled_from([*WARM_UP_KINDS, "ConstantWithCoolDownLR", "WarmUpStableDecayLR", "CosineAnnealingLR"]),
    required=st.fixed_dictionaries({key: st.integers(1, 20) for key in ["learning_rate", "base_lr", "t_max", "t_0"]}),
    others=st.dictionaries(
        st.sampled_from(KEYS),
        st.one_of(
            st.none(), st.booleans(), st.integers(-1, 40), st.integers(), st.floats(0, 1), st.floats(), st.text()
        ),
        max_size=3,
    ),
)
def test_any_section_gives_finite_rates_or_one_config_error(kind, required, others):
    values, named = [], True
    try:
        values = rates(kind, {**required, **others}, 33)
    except ConfigError as error:
        named = error.message.startswith("lr_schedule.")
    assert named
    assert all(math.isfinite(value) for value in values)
