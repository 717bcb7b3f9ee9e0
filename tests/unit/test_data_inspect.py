"""``runformer.data.inspect``: what is counted, shown and mended."""

from __future__ import annotations

import struct
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_rows import ROWS, SMALL, write_rows

from runformer.config.task import DataOptions, MindRecordFiles
from runformer.data.dataset import TokenDataset
from runformer.data.inspect import figures as figures_module
from runformer.data.inspect.facts import size_text
from runformer.data.inspect.figures import Figures, count
from runformer.data.inspect.files import TokenColumns, open_dataset, token_columns
from runformer.data.inspect.report import as_json, as_text, bar, histogram
from runformer.data.megatron import IndexedWriter
from runformer.data.mindrecord import Column, MindRecordWriter
from runformer.data.packing import best_fit, count_rows
from runformer.errors import DataError


def counted(path: Path, **options: Any) -> Figures:
    records = open_dataset(path)
    columns = token_columns(records)
    assert columns is not None
    return count(records, columns, **options)


# Figures


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60).flatmap(lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room), max_size=90))))
def test_rows_are_counted_as_best_fit_makes_them(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    assert count_rows(Counter(lengths), capacity) == len(best_fit(lengths, capacity))


@pytest.mark.parametrize("lengths", [{0: 1}, {5: 1}])
def test_rows_cannot_be_counted_of_what_does_not_fit(lengths: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="not 1 to 4"):
        count_rows(lengths, 4)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]] | None]:
    size = st.just(draw(st.integers(0, 9))) if draw(st.booleans()) else st.integers(0, 9)
    rows = draw(st.lists(size.flatmap(lambda n: st.lists(st.integers(0, 3), min_size=n, max_size=n)), max_size=12))
    labelled = draw(st.booleans())
    marks = [[draw(st.sampled_from([-100, 0, 7])) for _ in row] for row in rows] if labelled else None
    return rows, marks


@settings(max_examples=80, deadline=None)
@given(datasets(), st.sampled_from([0, 1, 9]), st.sampled_from([1, 5, 1000]))
def test_every_figure_as_counted_by_hand(
    tmp_path_factory: pytest.TempPathFactory,
    dataset: tuple[list[list[int]], list[list[int]] | None],
    pad: int,
    batch: int,
) -> None:
    rows, labels = dataset
    path = write_rows(tmp_path_factory.mktemp("rows") / "x.mindrecord", rows, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures_module, "_BATCH_TOKENS", batch)
        found = counted(path, pad_token_id=pad)
    lengths = [max((place + 1 for place, token in enumerate(row) if token != pad), default=0) for row in rows]
    everything = [token for row in rows for token in row]
    learnt = sum(
        token != pad and (labels is None or labels[number][place + 1] != -100)
        for number, row in enumerate(rows)
        for place, token in enumerate(row[:-1])
    )
    assert found.records == len(rows)
    assert found.stored == len(everything)
    assert found.lengths == Counter(lengths)
    assert found.tokens == sum(lengths)
    assert found.counted == learnt
    assert found.empty == lengths.count(0)
    assert found.distinct == len(set(everything))
    assert (found.smallest, found.largest) == ((min(everything), max(everything)) if everything else (None, None))
    assert found.quantile(0.5) == (sorted(lengths)[(len(lengths) - 1) // 2] if lengths else 0)


def test_what_counts_is_what_training_counts(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = random.integers(0, 5, (40, 17)).tolist()
    labels = np.where(random.random((40, 17)) < 0.3, -100, 3).tolist()
    for marks, columns in ((labels, ("input_ids", "labels")), (None, ("input_ids",))):
        path = write_rows(tmp_path / f"{len(columns)}.mindrecord", rows, marks)
        options = DataOptions(
            source=MindRecordFiles(paths=(path,)),
            columns=columns,
            shuffle=None,
            seed=1,
            pad_token_id=0,
            ignore_token_id=-100,
        )
        dataset = TokenDataset(options, None, 5)
        batch = dataset.rows(range(len(dataset)))
        assert counted(path, pad_token_id=0).counted == int((batch.labels_BL != -100).sum())


def test_packing_and_padding_of_padded_rows(tmp_path: Path) -> None:
    rows = [[5] * size + [0] * (10 - size) for size in (10, 4, 6, 3, 3, 4)]
    found = counted(write_rows(tmp_path / "x.mindrecord", rows))
    assert (found.pad_token_id, found.pad_guessed) == (0, True)
    packing = found.packing()
    assert packing is not None
    assert (packing.rows_before, packing.rows_after, packing.tokens) == (6, 3, 30)
    assert found.padding == 0.5
    text = as_text(found)
    assert "50.0 % of rows of 10 tokens; padding is id 0, a guess" in text
    assert "one record a row takes 6 rows (50.0 % tokens); packed, 3 (100.0 %): 2.00 times fewer" in text


def test_rows_of_another_length_than_the_records(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.mindrecord", [[1] * 9, [1] * 3, [1] * 2, []])
    found = counted(path, sequence_length=4)
    assert (found.row_length, found.too_long, found.empty) == (5, 1, 1)
    packing = found.packing()
    assert packing is not None
    assert (packing.rows_before, packing.rows_after, packing.tokens) == (4, 2, 10)
    text = as_text(found)
    assert "4, 1 of them empty" in text
    assert "1 records have more than the 5 tokens of a row" in text
    assert counted(path).packing() is None
    assert "--seq_length says how long rows are" in as_text(counted(path))


@pytest.mark.parametrize(
    ("rows", "guess"),
    [
        ([[1, 2, 3, 3, 3, 3], [4, 3, 3, 3, 3, 3], [1, 2, 4, 5, 6, 7]], 3),
        ([[1, 2, 3, 3, 3], [4, 1, 1, 3, 3]], None),
        ([[1, 3, 3, 3, 3], [4, 2, 2, 2, 2]], None),
        ([[3, 3, 3, 3, 3], [3, 1]], None),
        ([[3, 3, 3], []], None),
        ([], None),
    ],
)
def test_padding_is_guessed_only_where_records_agree(tmp_path: Path, rows: list[list[int]], guess: int | None) -> None:
    found = counted(write_rows(tmp_path / "x.mindrecord", rows))
    assert found.pad_token_id == guess
    assert as_json(found)["pad_token_id_guessed"] is (guess is not None)


def test_ids_that_no_vocabulary_has(tmp_path: Path) -> None:
    path = tmp_path / "x.mindrecord"
    with MindRecordWriter(path, {"input_ids": Column("int64", (-1,))}, **SMALL) as writer:
        writer.write([{"input_ids": np.array([-5, 3, 2**62, 2**24, 3, 2**24 - 1, -(2**63)])}])
    tracemalloc.start()
    try:
        found = counted(path, pad_token_id=0)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()
    assert (found.smallest, found.largest, found.distinct) == (-(2**63), 2**62, 2)
    assert (found.negative, found.beyond) == (2, 2)
    assert "2 tokens are negative" in as_text(found)
    assert "2 tokens are 16,777,216 or more" in as_text(found)


def test_memory_does_not_grow_with_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures_module, "_BATCH_TOKENS", 1 << 12)
    peaks = []
    for records in (200, 1600):
        path = write_rows(tmp_path / f"{records}.mindrecord", [[7] * (n % 97 + 1) for n in range(records)])
        opened = open_dataset(path)
        tracemalloc.start()
        count(opened, TokenColumns("input_ids", None), pad_token_id=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0] + 4 * 1600


def test_records_without_one_label_a_token(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.mindrecord", [[1, 2], [3, 4, 5]], [[1, 2], [3, 4]])
    with pytest.raises(DataError, match=r"record 1 of .* has 3 'input_ids' and 2 'labels': not one label a token"):
        counted(path)


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures_module, "_BATCH_TOKENS", 40)
    told: list[int] = []
    counted(write_rows(tmp_path / "x.mindrecord", [[1] * 10] * 11), advance=told.append)
    assert told == [4, 4, 3]


def test_documents_of_megatron(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "text.v1", "uint16") as writer:
        for row in ([1, 2, 3], [], [60000] * 9, [4]):
            writer.add(np.array(row, dtype="uint16"))
    for name in ("text.v1", "text.v1.bin", "text.v1.idx"):
        found = counted(tmp_path / name, sequence_length=4)
        assert (found.records, found.tokens, found.counted, found.largest) == (4, 13, 10, 60000)
        assert (found.lengths, found.padding) == (Counter([3, 0, 9, 1]), 0.0)
    assert "none: samples run on" in as_text(found)
    records = open_dataset(tmp_path / "text.v1")
    assert records.describe(2).startswith("document 2 of")
    assert records.read_columns(2, ["tokens"])["tokens"].tolist() == [60000] * 9
    (tmp_path / "text.v1.bin").unlink()
    with pytest.raises(DataError, match="is not there"):
        open_dataset(tmp_path / "text.v1.idx")


def test_a_megatron_dataset_without_documents(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    (tmp_path / "x.idx").write_bytes(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 0, 0))
    found = counted(tmp_path / "x")
    assert (found.records, found.tokens, found.largest) == (0, 0, None)
    assert "ids      none" in as_text(found)


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 200_000), st.integers(1, 10**6), min_size=1, max_size=30))
def test_a_histogram_has_every_record_once(lengths: dict[int, int]) -> None:
    lines = histogram(Counter(lengths))
    assert len(lines) <= 14
    shown = [line.replace(",", "").split("%")[0].split() for line in lines]
    bounds = [(int(words[0]), int(words[2]) if words[1] == "to" else int(words[0])) for words in shown]
    counts = [int(words[-2]) for words in shown]
    assert [sum(n for length, n in lengths.items() if low <= length <= high) for low, high in bounds] == counts
    assert sum(counts) == sum(lengths.values())
    assert all(("█" in line or line[-1] in "▏▎▍▌▋▊▉") == (n > 0) for line, n in zip(lines, counts, strict=True))


def test_bars() -> None:
    assert [bar(part) for part in (0, 1e-9, 1 / 40, 0.5, 1)] == ["", "▏", "█", "█" * 20, "█" * 40]
    assert [size_text(size) for size in (0, 1023, 1024, 1536, 1 << 40, 1 << 52)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.5 KiB",
        "1 TiB",
        "4096 TiB",
    ]


# Columns


def test_which_columns_hold_tokens(tmp_path: Path) -> None:
    schema = {
        "a": Column("float32", (-1,)),
        "b": ROWS,
        "k": Column("int32"),
        "labels": ROWS,
        "m": Column("int32", (2, 2)),
    }
    path = tmp_path / "x.mindrecord"
    with MindRecordWriter(path, schema, **SMALL) as writer:
        row = np.zeros(3, "int32")
        square = np.zeros((2, 2), "int32")
        writer.write([{"a": np.zeros(3, "float32"), "b": row, "k": 1, "labels": row, "m": square}])
    records = open_dataset(path)
    assert token_columns(records) == TokenColumns("b", "labels")
    assert token_columns(records, ["labels", "b"]) == TokenColumns("labels", "b")
    with pytest.raises(DataError, match="has no column 'bb'") as caught:
        token_columns(records, ["bb"])
    assert "did you mean 'b'?" in str(caught.value)
    for name in ("a", "k", "m"):
        with pytest.raises(DataError, match="does not hold rows of token ids"):
            token_columns(records, [name])


def test_a_dataset_without_tokens(tmp_path: Path) -> None:
    with MindRecordWriter(tmp_path / "x.mindrecord", {"s": Column("string")}, **SMALL) as writer:
        writer.write([{"s": "text"}])
    assert token_columns(open_dataset(tmp_path / "x.mindrecord")) is None
