"""The sample order is MindSpore's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runformer.data.order import Shuffle, sample_order, shuffle_like_libstdcxx

ORDERS: list[Shuffle | None] = [None, "reference", "hashed"]


@pytest.fixture(scope="module")
def recorded(oracle_dir: Path) -> Any:
    return json.loads((oracle_dir / "mindrecord" / "shuffle_order.json").read_text())


def test_every_order_that_minddataset_took_without_sharding(recorded: Any) -> None:
    cases = [case for case in recorded["minddataset"] if case["num_shards"] is None]
    assert len(cases) > 25
    for case in cases:
        order = sample_order(case["n"], "reference" if case["shuffle"] else None, case["seed"])
        assert [order.epoch(number).tolist() for number in range(len(case["epochs"]))] == case["epochs"]


def test_several_files_are_shuffled_as_one(recorded: Any) -> None:
    case = next(case for case in recorded["four_files"] if case["mode"] == "GLOBAL")
    order = sample_order(case["files"] * case["rows_per_file"], "reference", case["seed"])
    assert [order.epoch(number).tolist() for number in range(len(case["epochs"]))] == case["epochs"]


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(0, 2**33), st.lists(st.integers(0, 6), max_size=6), st.sampled_from(ORDERS))
def test_an_epoch_does_not_depend_on_which_were_asked_before(
    size: int, seed: int, asked: list[int], shuffle: Shuffle | None
) -> None:
    order = sample_order(size, shuffle, seed)
    for number in asked:
        epoch = order.epoch(number).tolist()
        assert sorted(epoch) == list(range(size))
        assert epoch == sample_order(size, shuffle, seed).epoch(number).tolist()


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
    items = np.arange(size)
    shuffle_like_libstdcxx(items, seed)
    assert items[: len(head)].tolist() == head
    assert sum(place * item for place, item in enumerate(items.tolist())) == checksum


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.data())
def test_a_hashed_order_is_a_permutation_of_which_any_stretch_can_be_asked_for(
    size: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    order = sample_order(size, "hashed", seed)
    whole = order.epoch(epoch)
    assert sorted(whole.tolist()) == list(range(size))
    begin = data.draw(st.integers(0, size))
    end = data.draw(st.integers(begin, size))
    assert order.span(epoch, begin, end).tolist() == whole[begin:end].tolist()


def test_hashed_orders_of_seeds_and_epochs_look_independent() -> None:
    size = 2000
    orders = [sample_order(size, "hashed", seed).epoch(epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    for index, one in enumerate(orders):
        places = np.arange(size)
        assert abs(np.corrcoef(places, one)[0, 1]) < 0.1  # 4.5 standard deviations of chance
        assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.1
        for other in orders[:index]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.1
            assert int((one == other).sum()) < 12  # one is expected by chance


def test_where_samples_of_a_hashed_order_come_to_stand_is_uniform() -> None:
    """Each sample is at each place equally often: chi-square of 30 × 30 cells, 841 degrees of freedom."""
    size, epochs = 30, 3000
    counts = np.zeros((size, size))
    order = sample_order(size, "hashed", 5)
    for epoch in range(epochs):
        counts[np.arange(size), order.epoch(epoch)] += 1
    statistic = float(((counts - epochs / size) ** 2 / (epochs / size)).sum())
    assert 841 - 5 * 41 < statistic < 841 + 5 * 41  # five standard deviations, √(2 · 841) each


def test_a_billion_samples_take_no_memory() -> None:
    order = sample_order(10**9, "hashed", 3)
    found = order.span(7, 999_999_000, 10**9)
    assert len(set(found.tolist())) == 1000
    assert 0 <= found.min() <= found.max() < 10**9
