"""The sample order is MindSpore's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runformer.data.order import SampleOrder, shuffle_like_libstdcxx


@pytest.fixture(scope="module")
def recorded(oracle_dir: Path) -> Any:
    return json.loads((oracle_dir / "mindrecord" / "shuffle_order.json").read_text())


def test_every_order_that_minddataset_took_without_sharding(recorded: Any) -> None:
    cases = [case for case in recorded["minddataset"] if case["num_shards"] is None]
    assert len(cases) > 25
    for case in cases:
        order = SampleOrder(case["n"], case["shuffle"], case["seed"])
        assert [order.epoch(number).tolist() for number in range(len(case["epochs"]))] == case["epochs"]


def test_several_files_are_shuffled_as_one(recorded: Any) -> None:
    case = next(case for case in recorded["four_files"] if case["mode"] == "GLOBAL")
    order = SampleOrder(case["files"] * case["rows_per_file"], True, case["seed"])
    assert [order.epoch(number).tolist() for number in range(len(case["epochs"]))] == case["epochs"]


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(0, 2**33), st.lists(st.integers(0, 6), max_size=6), st.booleans())
def test_an_epoch_does_not_depend_on_which_were_asked_before(
    size: int, seed: int, asked: list[int], shuffle: bool
) -> None:
    order = SampleOrder(size, shuffle, seed)
    for number in asked:
        epoch = order.epoch(number).tolist()
        assert sorted(epoch) == list(range(size))
        assert epoch == SampleOrder(size, shuffle, seed).epoch(number).tolist()


# Made by std::shuffle and std::default_random_engine of g++'s libstdc++ on 0, 1, 2, …; 46341 is the first size that
# draws one number a place instead of one for two.
LARGE = [
    (46340, 43, 24884656567867, [33599, 42348]),
    (46340, 4294967295, 24887871375055, [12864, 15649]),
    (46341, 43, 24830793255973, [25235, 43846]),
    (46341, 4294967295, 24860311237644, [7657, 15610]),
    (50000, 43, 31217057050720, [25235, 43846]),
    (50000, 4294967295, 31234472087144, [7657, 15610]),
]


@pytest.mark.parametrize(("size", "seed", "checksum", "head"), LARGE)
def test_large_orders_equal_libstdcxx(size: int, seed: int, checksum: int, head: list[int]) -> None:
    items = list(range(size))
    shuffle_like_libstdcxx(items, seed)
    assert items[: len(head)] == head
    assert sum(place * item for place, item in enumerate(items)) == checksum
