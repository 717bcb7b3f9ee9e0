"""Mixtures: whose turn it is, which sample of it, epoch after epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import json_lines, of_files, pack, with_handlers

from runformer.config.data_sources import Mixture, MixturePart
from runformer.config.task import DataOptions, MindRecordFiles
from runformer.data import mixture as mixture_module
from runformer.data.dataset import TokenDataset
from runformer.data.loader import BatchLoader
from runformer.data.mindrecord import Column, MindRecordWriter
from runformer.data.mixture import Interleaving, MixedRecords
from runformer.data.open import open_records
from runformer.data.order import sample_order
from runformer.data.records import Records
from runformer.errors import DataError

counts = st.lists(st.integers(0, 40), min_size=1, max_size=7).filter(any)


class Rows(Records):
    """``size`` records of part ``part``: tokens say which it is."""

    def __init__(self, part: int, size: int, columns: Sequence[str] = ("input_ids", "labels"), length: int = 3) -> None:
        self.name = f"part{part}"
        self._part, self._size, self._columns, self._length = part, size, list(columns), length

    @property
    def column_names(self) -> Sequence[str]:
        return self._columns

    def __len__(self) -> int:
        return self._size

    def describe(self, record: int) -> str:
        return f"{self.name}, record {record}"

    def read_columns(self, record: int, columns: Sequence[str]) -> dict[str, Any]:
        return {name: np.full(self._length, 100 * self._part + record) for name in columns}


def mixed(
    sizes: Sequence[int], counts: Sequence[int] | None = None, shuffle: bool = False, seed: int = 0
) -> MixedRecords:
    parts = [Rows(part, size) for part, size in enumerate(sizes)]
    return MixedRecords(parts, [f"loader[{part}]" for part in range(len(parts))], counts, shuffle, seed)


def drawn(records: MixedRecords, begin: int, end: int) -> list[tuple[int, int]]:
    """Part and record at each place."""
    (tokens,) = records.read_rows(range(begin, end), ["input_ids"], 3)
    return [divmod(int(token), 100) for token in tokens[:, 0]]


@settings(max_examples=200, deadline=None)
@given(counts)
def test_no_part_is_ever_a_sample_ahead_or_behind(counts: list[int]) -> None:
    total = sum(counts)
    parts, numbers = Interleaving(counts).turns(np.arange(2 * total))
    had = [0] * len(counts)
    for place, (part, number) in enumerate(zip(parts.tolist(), numbers.tolist(), strict=True), start=1):
        assert number == had[part]
        had[part] += 1
        assert all(abs(taken * total - place * count) < total for taken, count in zip(had, counts, strict=True))
        if place % total == 0:
            assert had == [count * place // total for count in counts]


@settings(max_examples=100, deadline=None)
@given(counts, st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_any_place_may_be_asked_for(counts: list[int], places: list[int]) -> None:
    """What comes out hangs on the place alone."""
    turns = Interleaving(counts)
    parts, numbers = turns.turns(np.array(places))
    for place, part, number in zip(places, parts.tolist(), numbers.tolist(), strict=True):
        alone = Interleaving(counts).turns(np.array([place]))
        assert (alone[0].item(), alone[1].item()) == (part, number)
        assert abs(number * sum(counts) - place * counts[part]) < sum(counts)


def test_blocks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [7, 5, 11, 1]
    whole = Interleaving(counts).turns(np.arange(100))
    monkeypatch.setattr(mixture_module, "_BLOCK", 5)
    backwards = Interleaving(counts).turns(np.arange(99, -1, -1))
    assert [found.tolist() for found in whole] == [found[::-1].tolist() for found in backwards]


def test_large_mixtures_take_little_memory_and_time() -> None:
    turns = Interleaving([100_003, 7, 49_999])
    numbers = turns.turns(np.array([150_008, 3]))[1]
    assert numbers[0] in (100_002, 49_998, 6)
    assert len(turns._starts) <= 150_009 // 4096 + 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 40)), min_size=1, max_size=5), st.booleans())
def test_numbers_per_epoch_are_exact_and_short_parts_come_again(parts: list[tuple[int, int]], shuffle: bool) -> None:
    sizes, counts = [size for size, _ in parts], [count for _, count in parts]
    if not any(counts):
        with pytest.raises(DataError, match="needs samples of at least one part"):
            mixed(sizes, counts, shuffle)
        return
    records = mixed(sizes, counts, shuffle)
    assert len(records) == sum(counts)
    epochs = [drawn(records, epoch * len(records), (epoch + 1) * len(records)) for epoch in range(3)]
    for epoch in epochs:
        had = Counter(part for part, _ in epoch)
        assert [had[part] for part in range(len(parts))] == counts
    for part, size in enumerate(sizes):
        own = [record for epoch in epochs for owner, record in epoch if owner == part]
        for begin in range(0, len(own) - size + 1, size):  # each pass over a part has all of it
            assert sorted(own[begin : begin + size]) == list(range(size))


def test_orders() -> None:
    in_order = drawn(mixed([5, 3]), 0, 8)
    assert [record for part, record in in_order if part == 0] == [0, 1, 2, 3, 4]
    assert [record for part, record in in_order if part == 1] == [0, 1, 2]
    first, second = (drawn(mixed([50, 30], shuffle=True), begin, begin + 80) for begin in (0, 80))
    assert [part for part, _ in first] == [part for part, _ in second]
    assert first != second != drawn(mixed([50, 30]), 0, 80)
    assert drawn(mixed([50, 30], shuffle=True, seed=1), 0, 80) != first
    assert drawn(mixed([50, 30], shuffle=True), 0, 80) == first


def test_messages_name_the_parts_record() -> None:
    records = mixed([5, 3], [1, 1])
    assert records.describe(3) == "loader[1]: part1, record 1"
    assert records.describe(9) == "loader[1]: part1, record 1"  # of a later pass
    with pytest.raises(DataError, match=r"loader\[1\]: part1 holds no records"):
        mixed([5, 0], [1, 1])
    assert drawn(mixed([5, 0], [2, 0]), 0, 4) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_columns_that_all_have_and_borders_that_some_have() -> None:
    parts = [Rows(0, 2, ["input_ids", "labels", "mask"]), Rows(1, 2, ["input_ids", "labels", "actual_seq_len"])]
    records = MixedRecords(parts, ["a", "b"], None, False, 0)
    assert list(records.column_names) == ["input_ids", "labels", "actual_seq_len"]
    without = records.read_columns(0, ["input_ids", "actual_seq_len"])
    assert (without["input_ids"].tolist(), without["actual_seq_len"].tolist()) == ([0, 0, 0], [3])
    assert records.read_columns(0, ["actual_seq_len"])["actual_seq_len"].tolist() == [3]
    assert records.read_columns(1, ["actual_seq_len"])["actual_seq_len"].tolist() == [100] * 3


def mindrecord(path: Path, rows: list[list[int]]) -> Path:
    columns = {name: Column("int32", (-1,)) for name in ("input_ids", "labels")}
    with MindRecordWriter(path, columns) as writer:
        for row in rows:
            writer.write([dict.fromkeys(columns, np.array(row, dtype=np.int32))])
    return path


@pytest.fixture
def options(tmp_path: Path, table_cache: Path) -> DataOptions:  # noqa: ARG001 - it sets the cache
    """Two MindRecord rows to one of a table, which is packed."""
    binary = mindrecord(tmp_path / "x.mindrecord", [[number] * 5 for number in range(10, 16)])
    text = json_lines(tmp_path / "x.jsonl", [{"input_ids": [number] * 3} for number in range(30, 34)])
    table = with_handlers(of_files("json", text), pack(5))
    parts = (MixturePart(MindRecordFiles((binary,)), name="a"), MixturePart(table, name="b"))
    columns = ("input_ids", "labels", "actual_seq_len")
    return DataOptions(Mixture(parts, (4, 2), shuffle=True), columns, "source", 3)


def test_rows_of_a_mixture_are_rows_of_its_parts(options: DataOptions) -> None:
    dataset = TokenDataset(options, 4, 100)
    assert len(dataset) == 6
    batch = dataset.rows(range(12))
    assert batch.positions_BL is not None
    packed = batch.inputs_BL[:, 0] >= 30
    assert batch.positions_BL[packed].tolist() == [[0, 1, 2, 0]] * 4
    assert batch.positions_BL[~packed].tolist() == [[0, 1, 2, 3]] * 8
    firsts = batch.inputs_BL[:, 0].tolist()
    assert Counter(first >= 30 for first in firsts[:6]) == {False: 4, True: 2}
    assert sorted(first for first in firsts if first >= 30) == [30, 31, 32, 33]
    assert sorted({first for first in firsts if first < 30}) == list(range(10, 16))


def test_a_row_of_another_length_is_named_with_its_part(options: DataOptions) -> None:
    with pytest.raises(DataError, match=r"a: .*x\.mindrecord.*: 'input_ids' has 5 tokens, not 8"):
        TokenDataset(options, 7, 100).rows([0])


@pytest.mark.usefixtures("options")
def test_limited_parts(tmp_path: Path) -> None:
    part = MixturePart(MindRecordFiles((tmp_path / "x.mindrecord",)), num_samples=2, name="a")
    assert len(open_records(DataOptions(Mixture((part,)), ("input_ids",), "source", 0))) == 2


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_mixture_and_resume_anywhere(options: DataOptions, world_size: int) -> None:
    dataset = TokenDataset(options, 4, 100)

    def rows(rank: int, copies: int, start: int, batches: int) -> list[list[list[int]]]:
        order = sample_order(len(dataset), options.shuffle, options.seed)
        loader = BatchLoader(dataset, order, 3, True, rank=rank, world_size=copies)
        with loader.batches(start) as stream:
            return [next(stream).inputs_BL.tolist() for _ in range(batches)]

    whole = rows(0, 1, 0, 6)
    shares = [rows(rank, world_size, 0, 6) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        assert sorted(row for share in shares for row in share[step]) == sorted(batch)
    assert rows(0, 1, 9, 3) == whole[3:]
    assert whole[:2] != whole[2:4]  # another order in the next epoch
