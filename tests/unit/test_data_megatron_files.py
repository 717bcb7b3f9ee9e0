"""Indexed datasets: what is written is read again, and what is damaged is found out."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runformer.data.megatron import IndexedDataset, IndexedWriter
from runformer.data.megatron.layout import DTYPES, HEADER
from runformer.errors import DataError

ROWS = [[1, 2, 3], [], [4, 5], [6, 7, 8, 9, 10, 11, 12]]


def written(prefix: Path, rows: Any = ROWS, dtype: Any = np.int32) -> Path:
    with IndexedWriter(prefix, dtype) as writer:
        for row in rows:
            writer.add(row)
    return prefix


def index_bytes(prefix: Path) -> bytes:
    return Path(f"{prefix}.idx").read_bytes()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(st.integers(0, 127), max_size=9), max_size=12), dtype=st.sampled_from(list(DTYPES.values()))
)
def test_reads_what_was_written(tmp_path: Path, rows: list[list[int]], dtype: np.dtype[Any]) -> None:
    prefix = tmp_path / "some.text_document"
    with IndexedWriter(prefix, dtype, overwrite=True) as writer:
        for row in rows:
            writer.add(np.array(row, dtype=dtype))
    dataset = IndexedDataset(prefix)
    assert dataset.dtype == dtype
    assert [dataset[number].tolist() for number in range(len(dataset))] == rows
    assert dataset.lengths.tolist() == [len(row) for row in rows]
    assert dataset.documents.tolist() == list(range(len(rows) + 1))
    assert dataset.modes is None


def test_files_have_the_format_of_megatron(tmp_path: Path) -> None:
    written(tmp_path / "text", [[7, 8], [9]], np.uint16)
    assert (tmp_path / "text.bin").read_bytes() == struct.pack("<3H", 7, 8, 9)
    expected = b"MMIDIDX\0\0" + struct.pack("<QBQQ2i2q3q", 1, 8, 2, 3, 2, 1, 0, 4, 0, 1, 2)
    assert index_bytes(tmp_path / "text") == expected


def test_many_sequences_cross_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runformer.data.megatron.writer._CHUNK", 3)
    monkeypatch.setattr("runformer.data.megatron.indexed._CHUNK", 4)
    rows = [list(range(number % 5)) for number in range(23)]
    dataset = IndexedDataset(written(tmp_path / "text", rows))
    assert [dataset[number].tolist() for number in range(23)] == rows
    assert dataset.begins(np.arange(23)).tolist() == np.cumsum([0, *map(len, rows[:-1])]).tolist()


def test_modes_of_a_multimodal_dataset_are_read(tmp_path: Path) -> None:
    prefix = written(tmp_path / "text")
    with Path(f"{prefix}.idx").open("ab") as index:
        index.write(bytes([0, 1, 0, 1]))
    modes = IndexedDataset(prefix).modes
    assert modes is not None
    assert modes.tolist() == [0, 1, 0, 1]


def test_a_number_that_is_not_there_is_an_index_error(tmp_path: Path) -> None:
    dataset = IndexedDataset(written(tmp_path / "text"))
    for number in (-1, 4):
        with pytest.raises(IndexError, match="has 4 sequences"):
            dataset[number]


def test_writing_takes_no_memory_for_many_tokens(tmp_path: Path) -> None:
    row = np.arange(1000, dtype=np.int32)
    tracemalloc.start()
    with IndexedWriter(tmp_path / "text") as writer:
        for _ in range(20_000):  # 80 MB
            writer.add(row)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "text.bin").stat().st_size == 80_000_000
    assert most < 16 << 20


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([[1, 2], [3, 4]], "not a row of token ids"),
        ([0.5], "not a row of token ids"),
        ([1, 70000], "70000 does not fit uint16"),
        ([-1], "-1 does not fit uint16"),
    ],
)
def test_a_wrong_row_leaves_nothing_behind(tmp_path: Path, row: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        written(tmp_path / "text", [[1], row], np.uint16)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_older_files_as_they_were(tmp_path: Path) -> None:
    prefix = written(tmp_path / "text")
    before = index_bytes(prefix)
    with pytest.raises(ZeroDivisionError), IndexedWriter(prefix, overwrite=True) as writer:
        writer.add([1 // 0])
    assert index_bytes(prefix) == before
    assert len(list(tmp_path.iterdir())) == 2
    with IndexedWriter(prefix, overwrite=True) as writer:
        writer.add([5])
    assert IndexedDataset(prefix)[0].tolist() == [5]


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    written(tmp_path / "text")
    with pytest.raises(DataError, match=r"text\.bin exists already"):
        IndexedWriter(tmp_path / "text")
    with pytest.raises(DataError, match="cannot be written as uint32; there are uint8"):
        IndexedWriter(tmp_path / "other", np.uint32)
    with pytest.raises(DataError, match="cannot be written: No such file"), IndexedWriter(tmp_path / "no" / "text"):
        pass


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"text\.idx is not there"):
        IndexedDataset(tmp_path / "text")
    prefix = written(tmp_path / "text")
    Path(f"{prefix}.bin").unlink()
    with pytest.raises(DataError, match=r"text\.bin is not there"):
        IndexedDataset(prefix)


LENGTHS, POINTERS, DOCUMENTS = HEADER.size, HEADER.size + 4 * 4, HEADER.size + 4 * 12


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, b"x", "begins with b'xMIDIDX"),
        (9, struct.pack("<Q", 2), "version 2"),
        (17, b"\x09", "dtype 9, which is not known: 1 uint8, .*8 uint16"),
        (18, struct.pack("<Q", 2**62), "sequences and 4 documents take"),
        (26, struct.pack("<Q", 2**62), "cut off or damaged"),
        (LENGTHS, struct.pack("<i", -3), "sequence 0: -3 tokens"),
        (LENGTHS + 8, struct.pack("<i", 3), "sequence 3: 7 tokens at byte 20, where the one before ends at 24"),
        (LENGTHS + 12, struct.pack("<i", 2**31 - 1), r"text\.bin has 48 bytes, but text\.idx describes 8589934608"),
        (POINTERS + 8, struct.pack("<q", -4), "sequence 1: 0 tokens at byte -4"),
        (POINTERS, struct.pack("<q", 2**60), "sequence 0: 3 tokens at byte 1152921504606846976"),
        (DOCUMENTS, struct.pack("<q", 1), "document 0: it begins with sequence 1"),
        (DOCUMENTS + 16, struct.pack("<q", 0), "document 2: it begins with sequence 0"),
        (DOCUMENTS + 32, struct.pack("<q", 9), "its documents end with sequence 9, its sequences with 4"),
    ],
)
def test_damage_is_told(tmp_path: Path, place: int, value: bytes, words: str) -> None:
    prefix = written(tmp_path / "text")
    damaged = bytearray(index_bytes(prefix))
    damaged[place : place + len(value)] = value
    Path(f"{prefix}.idx").write_bytes(damaged)
    with pytest.raises(DataError, match=words):
        IndexedDataset(prefix)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_an_error_or_the_right_lengths(tmp_path: Path, data: st.DataObject) -> None:
    prefix = tmp_path / "text"
    with IndexedWriter(prefix, overwrite=True) as writer:
        for row in ROWS:
            writer.add(row)
    ending = data.draw(st.sampled_from(["idx", "bin"]))
    path = Path(f"{prefix}.{ending}")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    tracemalloc.start()
    try:
        dataset = IndexedDataset(prefix)
    except DataError:
        return
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 1 << 20
    read = [dataset[number].tolist() for number in range(len(dataset))]
    assert list(map(len, read)) == list(map(len, ROWS))
    if ending == "idx" and dataset.dtype == np.int32:
        assert read == ROWS
