"""``data index``: indexes compared with their data, and made anew."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_rows import ROWS, SMALL, write_rows

from runformer.data.inspect.files import open_dataset
from runformer.data.inspect.reindex import reindex
from runformer.data.megatron import IndexedWriter
from runformer.data.mindrecord import Column, MindRecordReader, MindRecordWriter
from runformer.data.mindrecord.reader import read_header
from runformer.errors import DataError


def outcomes(path: Path) -> list[tuple[bool, str | None]]:
    return [(done.written, done.wrong) for done in reindex(path)]


def edit(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as index, index:
        index.execute(statement)


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    path = tmp_path / "x.mindrecord"
    schema = {"ids": ROWS, "k": Column("int64"), "s": Column("string"), "x": Column("float64")}
    with MindRecordWriter(path, schema, **SMALL) as writer:
        rows = [np.full(number * 100, number, "int32") for number in range(30)]
        writer.write([{"ids": ids, "k": -n, "s": "é" * n, "x": n / 3} for n, ids in enumerate(rows)])
    return path


def test_an_index_that_agrees_is_left_alone(indexed: Path) -> None:
    index = Path(f"{indexed}.db")
    before = index.stat()
    assert outcomes(indexed) == [(False, None)]
    assert outcomes(index) == [(False, None)]  # its own name means the same
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_index_of_fewer_columns_agrees(indexed: Path) -> None:
    index = Path(f"{indexed}.db")
    for column in ("s_0", "x_0"):
        edit(index, f"ALTER TABLE INDEXES DROP COLUMN {column}")
    assert outcomes(indexed) == [(False, None)]


@pytest.mark.parametrize(
    ("statement", "wrong"),
    [
        ("UPDATE INDEXES SET PAGE_OFFSET_BLOB = 9 WHERE ROW_ID = 2", "PAGE_OFFSET_BLOB of record 2 is 9, not "),
        ("UPDATE INDEXES SET k_0 = 5 WHERE ROW_ID = 3", "k_0 of record 3 is 5, not -3"),
        ("UPDATE INDEXES SET s_0 = 'other' WHERE ROW_ID = 4", "s_0 of record 4 is 'other', not 'éééé'"),
        ("UPDATE INDEXES SET x_0 = 0.5 WHERE ROW_ID = 5", "x_0 of record 5 is 0.5, not 1.66"),
        ("UPDATE INDEXES SET x_0 = NULL WHERE ROW_ID = 5", "x_0 of record 5 is None"),
        ("DELETE FROM INDEXES WHERE ROW_ID >= 28", "it lacks record 28 and what follows"),
        ("DELETE FROM INDEXES", "it lacks record 0 and what follows"),
        ("DELETE FROM INDEXES WHERE ROW_ID = 4", "ROW_ID of record 4 is 5, not 4"),
        ("UPDATE INDEXES SET ROW_ID = 'x' WHERE ROW_ID = 0", "ROW_ID of record 0 is "),
        ("ALTER TABLE INDEXES ADD COLUMN color_0 TEXT", "it has columns that the data lacks: color_0"),
        ("ALTER TABLE INDEXES RENAME COLUMN ROW_GROUP_ID TO g", "it has no places of records"),
        ("UPDATE SHARD_NAME SET NAME = 'y.mindrecord'", "it is that of y.mindrecord"),
        ("DELETE FROM SHARD_NAME", "it is that of no file"),
        ("DROP TABLE SHARD_NAME", "it cannot be read"),
        ("DROP TABLE INDEXES", "it cannot be read (it has no table INDEXES)"),
        ("ALTER TABLE INDEXES RENAME TO kept", "it cannot be read (it has no table INDEXES)"),
    ],
)
def test_an_index_that_disagrees_is_made_anew(indexed: Path, statement: str, wrong: str) -> None:
    index = Path(f"{indexed}.db")
    right = index.read_bytes()
    edit(index, statement)
    [(written, how)] = outcomes(indexed)
    assert written
    assert how is not None
    assert how.startswith(wrong)
    assert index.read_bytes() == right
    assert [path.name for path in indexed.parent.iterdir() if path.name.startswith(".")] == []


def test_a_view_in_the_place_of_the_table_is_not_asked(indexed: Path) -> None:
    index = Path(f"{indexed}.db")
    edit(index, "DROP TABLE INDEXES")
    endless = "WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c) SELECT n AS ROW_ID FROM c"
    edit(index, f"CREATE VIEW INDEXES AS {endless}")
    assert outcomes(indexed) == [(True, "it cannot be read (it has no table INDEXES)")]


def test_an_index_with_more_records(indexed: Path) -> None:
    index = Path(f"{indexed}.db")
    places = "PAGE_ID_RAW, PAGE_OFFSET_RAW, PAGE_OFFSET_RAW_END, ROW_GROUP_ID, PAGE_ID_BLOB, PAGE_OFFSET_BLOB"
    values = f"30, {places}, PAGE_OFFSET_BLOB_END, 0, 1, 0, 'a', 0, 1"
    edit(index, f"INSERT INTO INDEXES SELECT {values} FROM INDEXES WHERE ROW_ID = 0")
    assert outcomes(indexed) == [(True, "it has more records")]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.floats(0, 1), st.floats(0, 1))
def test_any_bytes_in_the_place_of_an_index(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: float, kept: float
) -> None:
    folder = tmp_path_factory.mktemp("noise")
    path = write_rows(folder / "x.mindrecord", [[1, 2]] * 20)
    index = Path(f"{path}.db")
    right = index.read_bytes()
    begin = int(place * len(right))
    index.write_bytes((right[:begin] + noise + right[begin + len(noise) :])[: int(kept * len(right))])
    outcomes(path)
    assert outcomes(path) == [(False, None)]  # whatever it was, now it agrees
    with MindRecordReader(path) as reader:
        assert len(reader) == 20
        assert all(reader[row]["input_ids"].tolist() == [1, 2] for row in range(20))


def test_missing_indexes_of_all_shards_and_of_a_folder(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.mindrecord", [[1]] * 9, shards=3)
    kept = [index.read_bytes() for index in sorted(tmp_path.glob("*.db"))]
    for index in tmp_path.glob("*.db"):
        index.unlink()
    assert outcomes(path) == [(True, None)] * 3
    assert [index.read_bytes() for index in sorted(tmp_path.glob("*.db"))] == kept
    Path(f"{path}.db").unlink()
    assert outcomes(tmp_path) == [(True, None), (False, None), (False, None)]
    path.with_name("x.mindrecord2").unlink()
    with pytest.raises(DataError, match=r"one of 3 shards, but x\.mindrecord2 is not beside it"):
        outcomes(path)


def test_damaged_data_gets_no_index(indexed: Path) -> None:
    index = Path(f"{indexed}.db")
    before = index.read_bytes()
    content = bytearray(indexed.read_bytes())
    content[16 << 10] ^= 1
    indexed.write_bytes(bytes(content))
    with pytest.raises(DataError, match="is damaged") as caught:
        outcomes(indexed)
    assert "an index cannot mend it" in str(caught.value)
    assert index.read_bytes() == before
    assert len(list(indexed.parent.iterdir())) == 2


def test_an_index_cannot_be_made_for_megatron(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "text") as writer:
        writer.add([1, 2])
    with pytest.raises(DataError, match="belongs to Megatron-LM's"):
        outcomes(tmp_path / "text.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"abc", "is not a MindRecord file"), (b"\2\0\0\0\0\0\0\0{}", "not a sound")],
)
def test_other_files_have_no_header(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_header(tmp_path / "x")
    with pytest.raises(DataError, match="does not exist"):
        read_header(tmp_path / "y")


def test_an_index_in_the_place_of_its_file(indexed: Path) -> None:
    with pytest.raises(DataError, match="is the index of a MindRecord file"):
        open_dataset(Path(f"{indexed}.db"))
