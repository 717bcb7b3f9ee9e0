"""Damaged MindRecord files: each is read as far as it is sound, or explained in a DataError."""

from __future__ import annotations

import copy
import json
import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runformer.data.mindrecord import Column, MindRecordReader, MindRecordWriter
from runformer.data.mindrecord.header import LENGTH
from runformer.errors import DataError

HEADER_SIZE, PAGE_SIZE = 16 << 10, 32 << 10
SCHEMA = {
    "ids": Column("int32", (-1,)),
    "rest": Column("float32", (-1, 2)),
    "text": Column("string"),
    "k": Column("int64"),
    "x": Column("float64"),
}
RECORDS: list[dict[str, Any]] = [
    {
        "ids": np.arange(number * 400, dtype="int32"),
        "rest": np.ones((number, 2), "float32"),
        "text": "é" * number * 40,
        "k": -number,
        "x": number / 3,
    }
    for number in range(12)
]


def write(path: Path, records: list[dict[str, Any]] = RECORDS, shard_num: int = 1) -> None:
    with MindRecordWriter(path, SCHEMA, header_size=HEADER_SIZE, page_size=PAGE_SIZE, shard_num=shard_num) as writer:
        writer.write(records)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two row groups, with its index."""
    path = tmp_path_factory.mktemp("sound") / "x.mindrecord"
    write(path)
    assert len([page for page in header_of(path.read_bytes())["page"] if page["page_type"] == "BLOB_DATA"]) == 2
    return path


def header_of(content: bytes) -> Any:
    return json.loads(content[8 : 8 + LENGTH.unpack_from(content)[0]])


def with_header(content: bytes, header: Any) -> bytes:
    text = json.dumps(header).encode()
    return (LENGTH.pack(len(text)) + text).ljust(HEADER_SIZE, b"\0") + content[HEADER_SIZE:]


def read_all(path: Path) -> int:
    """Read every record, and check that values have the types of the schema."""
    with MindRecordReader(path) as reader:
        for number in range(len(reader)):
            for name, value in reader[number].items():
                column = reader.schema[name]
                if column.shape is not None:
                    assert isinstance(value, np.ndarray)
                    assert value.dtype == column.dtype
                else:
                    kinds = {"string": str, "bytes": bytes, "float32": float, "float64": float}
                    assert type(value) is kinds.get(column.type, int)
        return len(reader)


def read_or_explain(path: Path) -> None:
    explanation = None
    try:
        read_all(path)
    except DataError as error:
        explanation = error
    assert explanation is None or (path.name in explanation.message and explanation.hint)


def place_copy(folder: Path, content: bytes, index: bytes | None = None) -> Path:
    path = folder / "copy.mindrecord"
    path.write_bytes(content)
    if index is not None:
        path.with_name("copy.mindrecord.db").write_bytes(index)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("copies")


EDITS = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), min_size=1, max_size=3)


def edited(content: bytes, edits: list[tuple[float, bytes]], begin: int, end: int) -> bytes:
    data = bytearray(content)
    for place, new in edits:
        at = begin + int(place * (end - begin - len(new)))
        data[at : at + len(new)] = new
    return bytes(data)


@settings(max_examples=150, deadline=None)
@given(edits=EDITS, in_header=st.booleans(), indexed=st.booleans(), kept=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_changed_bytes(sound: Path, folder: Path, edits: Any, in_header: bool, indexed: bool, kept: float) -> None:
    content = sound.read_bytes()
    bounds = (0, 8 + LENGTH.unpack_from(content)[0]) if in_header else (HEADER_SIZE, len(content))
    content = edited(content, edits, *bounds)[: int(kept * len(content))]
    read_or_explain(place_copy(folder, content, sound.with_name("x.mindrecord.db").read_bytes() if indexed else None))
    (folder / "copy.mindrecord.db").unlink(missing_ok=True)


JSON = st.one_of(
    st.sampled_from(
        [None, True, -1, 8, 40000, 2**31, 2**62, 2**63, 10**30, 1.5, float("nan"), "", "int32", "RAW_DATA"]
    ),
    st.sampled_from([[], [-1], [2, 3], {}, {"type": "int32"}, [{"id": 1, "offset": 0}], [[]]]),
    st.integers(0, 4).map(lambda shift: 1 << shift),
)


def leaves(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, child in children for place in leaves(child, (*path, key)))]


@settings(max_examples=250, deadline=None)
@given(data=st.data(), indexed=st.booleans())
def test_changed_header_fields(sound: Path, folder: Path, data: st.DataObject, indexed: bool) -> None:
    content = sound.read_bytes()
    header = copy.deepcopy(header_of(content))
    *way, last = data.draw(st.sampled_from(leaves(header)[1:]))
    node = header
    for key in way:
        node = node[key]
    how = data.draw(st.sampled_from(["replace", "shift", "delete"]))
    if how == "shift" and type(node[last]) is int:
        node[last] += data.draw(st.sampled_from([-8, -1, 1, 8, 4096]))
    elif how == "delete":
        del node[last]
    else:
        node[last] = data.draw(JSON)
    index = sound.with_name("x.mindrecord.db").read_bytes() if indexed else None
    read_or_explain(place_copy(folder, with_header(content, header), index))
    (folder / "copy.mindrecord.db").unlink(missing_ok=True)


@settings(max_examples=60, deadline=None)
@given(edits=EDITS, kept=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_changed_bytes_of_the_index(sound: Path, folder: Path, edits: Any, kept: float) -> None:
    index = sound.with_name("x.mindrecord.db").read_bytes()
    index = edited(index, edits, 0, len(index))[: int(kept * len(index))]
    read_or_explain(place_copy(folder, sound.read_bytes(), index))
    (folder / "copy.mindrecord.db").unlink()


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM INDEXES WHERE ROW_ID = 3",
        "INSERT INTO INDEXES SELECT 99, PAGE_ID_RAW, PAGE_OFFSET_RAW, PAGE_OFFSET_RAW_END, ROW_GROUP_ID, PAGE_ID_BLOB, "
        "PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END, 0, 1, 0, 'a', 0, 1 FROM INDEXES WHERE ROW_ID = 0",
        "UPDATE INDEXES SET PAGE_OFFSET_BLOB = PAGE_OFFSET_BLOB + 1 WHERE ROW_ID = 2",
        "UPDATE INDEXES SET PAGE_ID_RAW = 9 WHERE ROW_ID = 2",
        "UPDATE INDEXES SET PAGE_OFFSET_RAW = 'x'",
        "UPDATE INDEXES SET PAGE_OFFSET_RAW = 9223372036854775807",
        "UPDATE INDEXES SET PAGE_OFFSET_BLOB_END = PAGE_OFFSET_BLOB",
        "DROP TABLE INDEXES",
    ],
)
def test_an_index_of_other_data_is_refused(sound: Path, tmp_path: Path, change: str) -> None:
    path = place_copy(tmp_path, sound.read_bytes(), sound.with_name("x.mindrecord.db").read_bytes())
    with closing(sqlite3.connect(f"{path}.db")) as index, index:
        index.execute(change)
    with pytest.raises(DataError, match=r"copy\.mindrecord\.db does not fit") as caught:
        MindRecordReader(path)
    assert "python -m runformer data index FILE" in str(caught.value)


def test_an_index_that_is_wrong_inside_a_page_shows_at_the_record(sound: Path, tmp_path: Path) -> None:
    path = place_copy(tmp_path, sound.read_bytes(), sound.with_name("x.mindrecord.db").read_bytes())
    with closing(sqlite3.connect(f"{path}.db")) as index, index:
        index.execute("UPDATE INDEXES SET PAGE_OFFSET_BLOB_END = PAGE_OFFSET_BLOB_END + 8 WHERE ROW_ID = 2")
        index.execute("UPDATE INDEXES SET PAGE_OFFSET_BLOB = PAGE_OFFSET_BLOB + 8 WHERE ROW_ID = 3")
    with MindRecordReader(path) as reader:
        reader[1]
        with pytest.raises(DataError, match=r"record 2 of .*copy\.mindrecord is damaged") as caught:
            reader[2]
    assert "delete it" in str(caught.value)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("page", [0, 1, 2])
def test_a_page_of_zeros(sound: Path, tmp_path: Path, page: int, indexed: bool) -> None:
    content = bytearray(sound.read_bytes())
    begin = HEADER_SIZE + page * PAGE_SIZE
    end = min(begin + PAGE_SIZE, len(content))
    content[begin:end] = bytes(end - begin)
    index = sound.with_name("x.mindrecord.db").read_bytes() if indexed else None
    with pytest.raises(DataError, match="damaged"):
        read_all(place_copy(tmp_path, bytes(content), index))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"abc", "is not a MindRecord file"),
        (b"PK\x03\x04" + bytes(100), "is not a MindRecord file"),
        (bytes(9000), "is not a MindRecord file"),
        (LENGTH.pack(2**63) + b"{}", "is not a MindRecord file"),
        (LENGTH.pack(2) + b"{}", "'version' should be a text"),
        (LENGTH.pack(5) + b"{\xff\xfe}}", "not JSON"),
        (LENGTH.pack(50006) + b'{"a":' + b"[" * 50001, "nested too deeply"),
        (bytes(100) + b"AES-GCMENCRYPT", "is encrypted"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MindRecordReader(place_copy(tmp_path, content))


def test_a_truncated_file_says_how_much_is_missing(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file has only 60000: it is cut off"):
        MindRecordReader(place_copy(tmp_path, sound.read_bytes()[:60000]))


def test_an_unknown_version(sound: Path, tmp_path: Path) -> None:
    content = sound.read_bytes()
    with pytest.raises(DataError, match=r"version '4\.0' is not known"):
        MindRecordReader(place_copy(tmp_path, with_header(content, {**header_of(content), "version": "4.0"})))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        MindRecordReader(tmp_path / "x.mindrecord")
    with pytest.raises(DataError, match="cannot be read"):
        MindRecordReader(tmp_path)
    with pytest.raises(DataError, match="no MindRecord file"):
        MindRecordReader([])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x", shard_num=4)
    (tmp_path / "x2").unlink()
    with pytest.raises(DataError, match="one of 4 shards, but x2 is not beside it"):
        MindRecordReader(tmp_path / "x0")


def test_a_shard_of_another_dataset(tmp_path: Path) -> None:
    write(tmp_path / "x", shard_num=2)
    (tmp_path / "x1").write_bytes((tmp_path / "x0").read_bytes())
    (tmp_path / "x1.db").unlink()
    with pytest.raises(DataError, match="x1 is not shard 1"):
        MindRecordReader(tmp_path / "x0")


def test_files_of_different_columns(sound: Path, tmp_path: Path) -> None:
    with MindRecordWriter(tmp_path / "other", {"k": Column("int32")}) as writer:
        writer.write([{"k": 1}])
    with pytest.raises(DataError, match="has other columns than"):
        MindRecordReader([sound, tmp_path / "other"])


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", "..", "a\\b", "a\0"])
def test_a_header_names_no_file_outside_its_folder(sound: Path, tmp_path: Path, name: str) -> None:
    content = sound.read_bytes()
    header = {**header_of(content), "shard_addresses": [name, "copy.mindrecord"]}
    with pytest.raises(DataError, match="not the name of a file"):
        MindRecordReader(place_copy(tmp_path, with_header(content, header)))


@pytest.mark.parametrize("rows", [2**31, 2**40])
def test_a_lying_header_makes_nothing_large(sound: Path, tmp_path: Path, rows: int) -> None:
    content = sound.read_bytes()
    header = header_of(content)
    for page in header["page"]:
        page["end_row_id"] = page["end_row_id"] and rows
    path = place_copy(tmp_path, with_header(content, header))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="cannot be"):
            MindRecordReader(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
