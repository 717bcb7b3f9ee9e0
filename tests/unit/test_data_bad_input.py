"""Files that lie about their sizes take no memory, and indexes of other data are told from those of the data."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runformer.data.inspect.reindex import reindex
from runformer.data.megatron import IndexedDataset, IndexedWriter
from runformer.data.mindrecord import Column, MindRecordReader, MindRecordWriter
from runformer.data.mindrecord.header import LENGTH
from runformer.data.mindrecord.integers import unpack_integers
from runformer.data.mindrecord.msgpack import unpack_map
from runformer.data.mindrecord.sqlite import connect_to_index
from runformer.data.prepare.blocks import Position, text_blocks
from runformer.data.prepare.json_list import list_blocks
from runformer.data.prepare.records import records_of
from runformer.data.prepare.sources import Source
from runformer.errors import DataError

HEADER_SIZE, PAGE_SIZE = 16 << 10, 32 << 10
SCHEMA = {"ids": Column("int32", (-1,)), "rest": Column("int64", (-1,)), "k": Column("int32")}
ABSURD = [2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63 - 1]


def write(path: Path, lengths: list[int]) -> Path:
    with MindRecordWriter(path, SCHEMA, header_size=HEADER_SIZE, page_size=PAGE_SIZE, overwrite=True) as writer:
        numbers = enumerate(lengths)
        writer.write(
            [
                {"ids": np.full(length, 70000 + number, "int32"), "rest": np.arange(9), "k": number}
                for number, length in numbers
            ]
        )
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Five row groups."""
    return write(tmp_path / "x.mindrecord", [2000, 2100] * 8)


def read_all(path: Path) -> list[int]:
    """The first token of each record; all columns are read."""
    with MindRecordReader(path) as reader:
        return [int(reader[record]["ids"][0]) for record in range(len(reader))]


@contextmanager
def little_memory(limit: int = 1 << 20) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def with_header(path: Path, change: Any) -> None:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + LENGTH.unpack_from(content)[0]])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes((LENGTH.pack(len(text)) + text).ljust(HEADER_SIZE, b"\0") + content[HEADER_SIZE:])
    Path(f"{path}.db").unlink()


@pytest.mark.parametrize("size", ABSURD)
@pytest.mark.parametrize("field", ["header_size", "page_size", "end_row_id", "offset", "used"])
def test_absurd_sizes_in_a_header(path: Path, field: str, size: int) -> None:
    def change(header: Any) -> None:
        page = header["page"][0]
        if field == "used":
            page["page_size"] = size
        elif field == "offset":
            next(page for page in header["page"] if page["page_type"] == "RAW_DATA")["row_group_ids"][-1][field] = size
        else:
            (header if field in header else page)[field] = size

    with_header(path, change)
    with little_memory(), pytest.raises(DataError):
        read_all(path)


@pytest.mark.parametrize("length", ABSURD)
def test_absurd_lengths_of_records_and_headers(path: Path, length: int) -> None:
    content = path.read_bytes()
    for place in (HEADER_SIZE, HEADER_SIZE + PAGE_SIZE, 0):
        path.write_bytes(content[:place] + LENGTH.pack(length) + content[place + 8 :])
        for indexed in (True, False):
            if not indexed:
                Path(f"{path}.db").rename(f"{path}.kept")
            with little_memory(), pytest.raises(DataError):
                read_all(path)
        Path(f"{path}.kept").rename(f"{path}.db")


@pytest.mark.parametrize("length", [*ABSURD, 2**64 - 1])
def test_absurd_lengths_of_arrays(path: Path, length: int) -> None:
    content = bytearray(path.read_bytes())
    content[HEADER_SIZE + 8 : HEADER_SIZE + 16] = struct.pack(">Q", length)
    path.write_bytes(content)
    with MindRecordReader(path) as reader, little_memory():
        for read in (lambda: reader[0], lambda: reader.read_rows([0], ["ids"], 2000)):
            with pytest.raises(DataError, match=r"record 0 of .*x\.mindrecord is damaged"):
                read()


@pytest.mark.parametrize("count", [5, 2**31, 2**32 - 1])
def test_absurd_counts_of_packed_integers(count: int) -> None:
    packed = struct.pack(">I", count) + b"\0" + bytes(4)
    with little_memory(), pytest.raises(ValueError, match="packed integers"):
        unpack_integers(packed, np.dtype("<i4"))


@pytest.mark.parametrize(
    "head", [b"\xdf\xff\xff\xff\xff", b"\x81\xdb\xff\xff\xff\xff", b"\x81\xa1k\xdb\x7f\xff\xff\xff"]
)
def test_absurd_lengths_in_msgpack(head: bytes) -> None:
    with little_memory(), pytest.raises(ValueError, match="cut off"):
        unpack_map(head + b"\xa1a")


@pytest.mark.parametrize("place", [18, 26])
@pytest.mark.parametrize("number", [*ABSURD, 2**64 - 1])
def test_absurd_numbers_in_an_index_of_megatron(tmp_path: Path, place: int, number: int) -> None:
    with IndexedWriter(tmp_path / "x") as writer:
        writer.add([1, 2, 3])
    index = tmp_path / "x.idx"
    content = index.read_bytes()
    index.write_bytes(content[:place] + struct.pack("<Q", number) + content[place + 8 :])
    with little_memory(), pytest.raises(DataError, match=r"x\.idx"):
        IndexedDataset(tmp_path / "x")


def test_a_process_with_little_memory_reads_lying_files(path: Path, tmp_path: Path) -> None:
    """As above, by the operating system's count: what is not Python's is limited as well."""
    lying = tmp_path / "lying.mindrecord"
    shutil.copy(path, lying)
    shutil.copy(f"{path}.db", f"{lying}.db")
    with_header(lying, lambda header: header["page"][0].update(end_row_id=2**31))
    program = """
import resource, sys
import numpy as np
from runformer.data.mindrecord import MindRecordReader
from runformer.errors import DataError
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20), resource.RLIM_INFINITY))
try:
    MindRecordReader(sys.argv[1])
except DataError as error:
    print(error.message)
with MindRecordReader(sys.argv[2]) as reader:
    print(reader.read_rows(range(0, 16, 2), ["ids"], 2000)[0].shape)
"""
    command = [sys.executable, "-c", program, str(lying), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "cannot be" in first
    assert second == "(8, 2000)"


def test_a_file_that_ends_anywhere(path: Path) -> None:
    content = path.read_bytes()
    for kept in [*range(0, HEADER_SIZE, 1111), *range(HEADER_SIZE, len(content), 4096)]:
        path.write_bytes(content[:kept])
        with pytest.raises(DataError, match=r"x\.mindrecord") as caught:
            MindRecordReader(path)
        assert caught.value.hint


# Indexes of other data


@pytest.mark.parametrize("lengths", [[2100, 2000] * 8, [2000, 2100] * 7, [10] * 16])
def test_the_index_of_another_file_is_refused_and_mended(path: Path, tmp_path: Path, lengths: list[int]) -> None:
    right = read_all(path)
    other = write(tmp_path / "other.mindrecord", lengths)
    shutil.copy(f"{other}.db", f"{path}.db")
    with pytest.raises(DataError, match=r"x\.mindrecord") as caught:
        read_all(path)
    assert caught.value.hint is not None
    assert "data index FILE" in caught.value.hint
    [done] = reindex(path)
    assert done.written
    assert done.wrong == "it is that of other.mindrecord"
    assert read_all(path) == right


def test_an_index_that_is_wrong_in_the_middle_is_found_there(path: Path) -> None:
    right = read_all(path)
    with closing(sqlite3.connect(f"{path}.db")) as index, index:
        index.execute("UPDATE INDEXES SET PAGE_ID_BLOB = PAGE_ID_BLOB + 1 WHERE ROW_ID = 7")
    with MindRecordReader(path) as reader:
        assert [int(reader[record]["k"]) for record in (0, 15)] == [0, 15]
        for read in (lambda: reader[7], lambda: reader.read_rows([5, 7], ["rest"], 9)):
            with pytest.raises(DataError, match=r"x\.mindrecord\.db does not fit its data file") as caught:
                read()
            assert "python -m runformer data index FILE" in str(caught.value)
    assert [done.wrong is not None and done.wrong.startswith("PAGE_ID_BLOB of record 7") for done in reindex(path)] == [
        True
    ]
    assert read_all(path) == right


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE other(a)",
        "CREATE TABLE INDEXES(a)",
        "CREATE VIEW INDEXES AS SELECT 15 AS ROW_ID",
        "CREATE VIRTUAL TABLE INDEXES USING fts5(ROW_ID)",
    ],
)
def test_sqlite_files_of_something_else(path: Path, statement: str) -> None:
    index = Path(f"{path}.db")
    index.unlink()
    with closing(sqlite3.connect(index)) as database, database:
        database.execute(statement)
    with pytest.raises(DataError, match=r"x\.mindrecord\.db does not fit"):
        read_all(path)
    if "CREATE TABLE INDEXES" not in statement:
        with pytest.raises(sqlite3.Error, match="has no table INDEXES"):
            connect_to_index(index)
    assert [done.written for done in reindex(path)] == [True]
    assert len(read_all(path)) == 16


@pytest.mark.parametrize("size", [0, 1, 100, 5000, 70000])
def test_random_bytes_in_the_place_of_an_index(path: Path, size: int) -> None:
    index = Path(f"{path}.db")
    for start in (b"", b"SQLite format 3\0"):
        index.write_bytes(start + random.Random(size).randbytes(size))
        with pytest.raises(DataError, match=r"x\.mindrecord\.db does not fit"):
            read_all(path)
    [done] = reindex(path)
    assert done.wrong is not None
    assert len(read_all(path)) == 16


# Text


def test_a_number_of_a_json_list_that_python_does_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1},\n {"a": ' + "1" * 5000 + "}]")
    source = Source(path, "json_list", None, 0, 0)
    with pytest.raises(DataError, match=r"x\.json: record 2: not JSON at line 2, column 2: Exceeds the limit"):
        list(list_blocks(source, Position()))


@pytest.mark.parametrize("number", ["1.5e3", "1E-2", "-0.25", "12e+05"])
def test_a_number_that_is_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setattr("runformer.data.prepare.json_list.BLOCK", 16)
    path = tmp_path / "x.json"
    for spaces in range(16):
        path.write_text("[" + " " * spaces + f'{number}, {{"a": {number}}}]')
        blocks = list(list_blocks(Source(path, "json_list", None, 0, 0), Position()))
        assert b"\x1e".join(block.data for block in blocks).decode() == f'{number}\x1e{{"a": {number}}}'


def test_carriage_returns_in_csv_are_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'"a\rb",c\n"1\r1",2\n\r\n3\n')
    source = Source(path, "csv", None, 0, 0)
    found = [record for block in text_blocks(source, Position(), "line") for record in records_of(block)]
    assert found[0] == (f"{path}: line 2", {"a\rb": "1\r1", "c": "2"})
    assert found[1][0] == f"{path}: line 4"
    path.write_bytes(b"a,b\r1,2\r")  # lines of old Macs
    with pytest.raises(DataError, match=r"x\.csv: line 1: the header is no CSV"):
        list(text_blocks(source, Position(), "line"))
