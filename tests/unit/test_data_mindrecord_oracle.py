"""MindRecord against files that MindSpore wrote: every record, every byte of our own files, every index row."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runformer.data.mindrecord import MindRecordReader, MindRecordWriter
from runformer.data.mindrecord.records import Value

SINGLE_FILES = ["pretrain4097", "finetune", "mixed", "scalars", "floats", "appended"]
# MindSpore numbers pages call by call: how many records its writer was given at a time.
RECORDS_A_CALL = {"pretrain4097": 10}


@pytest.fixture(scope="module")
def folder(oracle_dir: Path) -> Path:
    return oracle_dir / "mindrecord"


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["datasets"]


def as_recorded(value: Value) -> dict[str, Any]:
    """A value in the form of the manifest."""
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        return {"kind": "array", "dtype": str(value.dtype), "shape": list(value.shape), "sha256": digest}
    if isinstance(value, bytes):
        return {"kind": "bytes", "len": len(value), "sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, float):
        return {"kind": "float", "value": value, "hex": value.hex()}
    return {"kind": type(value).__name__, "value": value}


@pytest.mark.parametrize("name", [*SINGLE_FILES, "shard4"])
def test_every_record_of_mindspores_files(folder: Path, manifest: dict[str, Any], name: str) -> None:
    expected = manifest[f"{name}.mindrecord"]
    with MindRecordReader(folder / expected["files"][0]) as reader:
        types = {
            column: {"type": about.type, **({} if about.shape is None else {"shape": list(about.shape)})}
            for column, about in reader.schema.items()
        }
        rows = [
            {column: as_recorded(value) for column, value in reader[number].items()} for number in range(len(reader))
        ]
    assert types == expected["schema"]
    assert rows == expected["rows"]


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_without_index_the_records_are_the_same(
    folder: Path, manifest: dict[str, Any], name: str, tmp_path: Path
) -> None:
    copy = tmp_path / f"renamed_{name}"
    copy.write_bytes((folder / f"{name}.mindrecord").read_bytes())
    with MindRecordReader(copy) as reader:
        rows = [
            {column: as_recorded(value) for column, value in reader[number].items()} for number in range(len(reader))
        ]
    assert rows == manifest[f"{name}.mindrecord"]["rows"]


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_our_file_of_the_same_records_is_mindspores_byte_for_byte(
    folder: Path, manifest: dict[str, Any], name: str, tmp_path: Path
) -> None:
    about, original = manifest[f"{name}.mindrecord"], folder / f"{name}.mindrecord"
    copy = tmp_path / original.name
    step = RECORDS_A_CALL.get(name, 7)
    with (
        MindRecordReader(original) as reader,
        MindRecordWriter(
            copy,
            reader.schema,
            header_size=about["header_size"],
            page_size=about["page_size"],
            description=about["desc"],
        ) as writer,
    ):
        rows = [reader[number] for number in range(len(reader))]
        for begin in range(0, len(rows), step):
            writer.write(rows[begin : begin + step])
    assert copy.read_bytes() == original.read_bytes()
    assert database(Path(f"{copy}.db")) == database(Path(f"{original}.db"))


def database(path: Path) -> list[list[tuple[Any, ...]]]:
    """The definitions of all tables and all rows."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as index:
        queries = ["SELECT name, sql FROM sqlite_master", "SELECT * FROM SHARD_NAME", "SELECT * FROM INDEXES"]
        return [index.execute(query).fetchall() for query in queries]


def test_one_path_opens_all_shards_and_a_list_only_its_own(folder: Path) -> None:
    shards = [folder / f"shard4.mindrecord{number}" for number in range(4)]
    with MindRecordReader(shards[2]) as whole, MindRecordReader([shards[3], shards[0]]) as two:
        assert whole.paths == shards
        assert [whole[number]["k"] for number in range(len(whole))] == list(range(42))
        assert [two[number]["k"] for number in range(len(two))] == [*range(32, 42), *range(11)]
        assert whole.describe(41) == f"record 9 of {shards[3]}"
