"""Files that MindSpore 2.7 wrote in every layout (by ``tests/oracle/mindrecord_check.py``): read, and written alike."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runformer.data.inspect.reindex import reindex
from runformer.data.mindrecord import Column, MindRecordReader, MindRecordWriter

ARCHIVES = Path(__file__).parents[1] / "oracle" / "mindrecord"
NAMES = sorted(path.stem for path in ARCHIVES.glob("*.zip"))


def unpacked(name: str, folder: Path) -> dict[str, Any]:
    with zipfile.ZipFile(ARCHIVES / f"{name}.zip") as archive:
        archive.extractall(folder)
    about: dict[str, Any] = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    return about


def plain(value: Any) -> Any:
    """A value as the archives have it, exactly."""
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), value.tobytes().hex()]
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return {"float": value.hex()} if isinstance(value, float) else value


def value_of(kept: Any) -> Any:
    """The reverse."""
    if isinstance(kept, list):
        dtype, shape, content = kept
        return np.frombuffer(bytes.fromhex(content), dtype).reshape(shape)
    if isinstance(kept, dict):
        return float.fromhex(kept["float"]) if "float" in kept else bytes.fromhex(kept["bytes"])
    return kept


def read(path: Path) -> list[dict[str, Any]]:
    with MindRecordReader(path) as reader:
        return [{name: plain(value) for name, value in reader[row].items()} for row in range(len(reader))]


def test_the_archives_are_here() -> None:
    assert len(NAMES) == 17


@pytest.mark.parametrize("name", NAMES)
def test_mindspores_records_with_its_index_and_without(tmp_path: Path, name: str) -> None:
    about = unpacked(name, tmp_path)
    first = tmp_path / about["files"][0]
    assert read(first) == about["records"]
    assert [done.written for done in reindex(first)] == [False] * len(about["files"])
    for index in tmp_path.glob("*.db"):
        index.unlink()
    assert read(first) == about["records"]
    assert [(done.written, done.wrong) for done in reindex(first)] == [(True, None)] * len(about["files"])
    assert read(first) == about["records"]


@pytest.mark.parametrize("name", [name for name in NAMES if "uneven" not in name])  # which are spread by chance
def test_our_files_of_the_same_records_are_mindspores(tmp_path: Path, name: str) -> None:
    about = unpacked(name, tmp_path)
    schema = {
        name: Column(column["type"], tuple(column["shape"]) if "shape" in column else None)
        for name, column in about["schema"].items()
    }
    records = [{name: value_of(kept) for name, kept in record.items()} for record in about["records"]]
    made = tmp_path / "ours"
    made.mkdir()
    with MindRecordWriter(
        made / "x.mindrecord",
        schema,
        shard_num=len(about["files"]),
        header_size=about["header_size"],
        page_size=about["page_size"],
        description=about["description"],
    ) as writer:
        for call in calls(about, records):
            writer.write(call)
    for file in about["files"]:
        ours, theirs = (made / file).read_bytes(), (tmp_path / file).read_bytes()
        if about["index"]:  # which our writer has no way to choose
            ours, theirs = without_index_fields(ours), without_index_fields(theirs)
        assert ours == theirs


def calls(about: dict[str, Any], records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The records as they were given to the writer. Even shards of a file hold their share of every call."""
    shards, size = len(about["files"]), about["calls"]
    if shards == 1:
        return [records[begin : begin + size] for begin in range(0, len(records), size)]
    share, whole = size // shards, len(records) // shards
    return [
        [record for shard in range(shards) for record in records[shard * whole + begin :][:share]]
        for begin in range(0, whole, share)
    ]


def without_index_fields(content: bytes) -> tuple[Any, bytes]:
    """A file's header, less what it says of indexed columns, and its pages."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return {key: value for key, value in header.items() if key != "index_fields"}, content[header["header_size"] :]
