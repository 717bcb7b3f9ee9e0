"""Batches from a cursor on: order, resume in the middle of an epoch, the background thread."""

from __future__ import annotations

import threading
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runformer.config.task import DataOptions, MindRecordFiles
from runformer.data.dataset import TokenDataset
from runformer.data.loader import BatchLoader
from runformer.data.mindrecord import Column, MindRecordWriter
from runformer.data.order import Shuffle, sample_order
from runformer.errors import DataError

SAMPLES = 13


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """Sample n holds the tokens n, n."""
    path = tmp_path_factory.mktemp("loader") / "x.mindrecord"
    with MindRecordWriter(path, {"input_ids": Column("int32", (-1,))}) as writer:
        writer.write([{"input_ids": np.array([n, n], dtype="int32")} for n in range(SAMPLES)])
    return open_dataset(path, vocab_size=SAMPLES)


def open_dataset(path: Path, vocab_size: int) -> TokenDataset:
    return TokenDataset(
        DataOptions(MindRecordFiles((path,)), ("input_ids",), shuffle="reference", seed=7), None, vocab_size
    )


def make_loader(
    dataset: TokenDataset, batch_size: int, drop: bool, shuffle: Shuffle | None = "reference"
) -> BatchLoader:
    return BatchLoader(dataset, sample_order(len(dataset), shuffle, 7), batch_size, drop)


def samples_of(loader: BatchLoader, start: int, count: int) -> list[list[int]]:
    with loader.batches(start) as batches:
        return [batch.inputs_BL[:, 0].tolist() for batch in islice(batches, count)]


def test_an_epoch_is_the_order_cut_into_batches(dataset: TokenDataset) -> None:
    loader = make_loader(dataset, 4, drop=False)
    order = sample_order(SAMPLES, "reference", 7)
    assert (loader.steps_per_epoch, loader.samples_per_epoch) == (4, 13)
    batches = samples_of(loader, 0, 8)
    assert [len(batch) for batch in batches] == [4, 4, 4, 1] * 2
    assert list(chain(*batches[:4])) == order.epoch(0).tolist()
    assert list(chain(*batches[4:])) == order.epoch(1).tolist()


def test_the_remainder_is_dropped_and_the_next_epoch_is_whole(dataset: TokenDataset) -> None:
    loader = make_loader(dataset, 4, drop=True)
    order = sample_order(SAMPLES, "reference", 7)
    assert (loader.steps_per_epoch, loader.samples_per_epoch) == (3, 12)
    batches = samples_of(loader, 0, 6)
    assert list(chain(*batches[:3])) == order.epoch(0).tolist()[:12]
    assert list(chain(*batches[3:])) == order.epoch(1).tolist()[:12]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, SAMPLES), st.booleans(), st.sampled_from([None, "reference", "hashed"]), st.integers(0, 12))
def test_going_on_from_the_cursor_gives_the_batches_of_an_uninterrupted_run(
    dataset: TokenDataset, batch_size: int, drop: bool, shuffle: Shuffle | None, done: int
) -> None:
    whole = samples_of(make_loader(dataset, batch_size, drop, shuffle), 0, done + 5)
    cursor = sum(map(len, whole[:done]))
    assert samples_of(make_loader(dataset, batch_size, drop, shuffle), cursor, 5) == whole[done:]


def test_an_epoch_may_be_several_passes(dataset: TokenDataset) -> None:
    order = sample_order(SAMPLES, "hashed", 7)
    loader = BatchLoader(dataset, order, 4, True, repeat=3)
    assert (loader.steps_per_epoch, loader.samples_per_epoch) == (9, 36)
    passes = [order.epoch(number).tolist()[:12] for number in range(4)]
    assert list(chain(*samples_of(loader, 0, 12))) == list(chain(*passes))
    assert list(chain(*samples_of(loader, 12, 6))) == passes[1] + passes[2]
    assert loader.batch_samples(32) == 4


def test_too_few_samples_for_a_batch(dataset: TokenDataset) -> None:
    with pytest.raises(DataError, match="holds 13 samples, fewer than the 14 of one batch"):
        make_loader(dataset, 14, drop=True)
    assert samples_of(make_loader(dataset, 14, drop=False, shuffle=None), 0, 1) == [list(range(SAMPLES))]


def test_an_error_is_raised_when_its_batch_is_due(tmp_path: Path) -> None:
    path = tmp_path / "x.mindrecord"
    with MindRecordWriter(path, {"input_ids": Column("int32", (-1,))}) as writer:
        writer.write([{"input_ids": np.array([n, n], dtype="int32")} for n in range(4)])
    loader = make_loader(open_dataset(path, vocab_size=3), 1, drop=True, shuffle=None)
    with loader.batches() as batches:
        assert [next(batches).inputs_BL.tolist() for _ in range(3)] == [[[0]], [[1]], [[2]]]
        with pytest.raises(DataError, match=r"record 3 .* token id 3"):
            next(batches)


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_closing_ends_the_thread(dataset: TokenDataset) -> None:
    with make_loader(dataset, 2, drop=True).batches() as batches:
        next(batches)
        assert len(reading_threads()) == 1
    assert reading_threads() == []
