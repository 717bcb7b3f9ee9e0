"""Streams: the rows that a table has, at any number, and how many there are."""

from __future__ import annotations

import gc
import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from byte_tokenizer import write_byte_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import encode, json_lines, method, of_files, opened, with_handlers

from runformer.config.data_sources import TableFiles
from runformer.data.tables.stream import StreamRecords
from runformer.errors import DataError

pytestmark = [
    pytest.mark.usefixtures("table_cache"),
    # The library closes a CSV file whose rows are not all read only when it is collected.
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]
ROWS = [{"text": f"row é {number}", "ids": [number] * (number % 5)} for number in range(40)]


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()


def write(format: str, folder: Path, rows: list[Any]) -> Path:
    table = datasets.Dataset.from_list(rows)
    match format:
        case "parquet":
            table.to_parquet(folder / "x.parquet")
            return folder / "x.parquet"
        case "arrow":
            table.save_to_disk(folder / "saved", num_shards=1)
            return next((folder / "saved").glob("*.arrow"))
        case "text":
            (folder / "x.txt").write_text("\r\n".join(row["text"] for row in rows), encoding="utf-8")
            return folder / "x.txt"
    return json_lines(folder / "x.jsonl", rows)


@pytest.mark.parametrize("format", ["json", "parquet", "arrow", "text"])
def test_a_stream_has_the_rows_of_the_table(tmp_path: Path, format: str) -> None:
    path = write(format, tmp_path, ROWS)
    stream, table = opened(of_files(format, path, streaming=True)), opened(of_files(format, path))
    assert (
        (len(stream), list(stream.column_names))
        == (len(table), list(table.column_names))
        == (40, list(table.column_names))
    )
    for number in (0, 1, 2, 7, 7, 30, 3, 39, 0):
        expected = {
            name: getattr(value, "tolist", lambda value=value: value)()
            for name, value in table.read_columns(number, table.column_names).items()
        }
        assert stream.read_columns(number, stream.column_names) == expected
    assert stream.describe(3) == table.describe(3)


class Counting:
    """As much of an IterableDataset as is needed, which counts what is read."""

    def __init__(self, rows: int) -> None:
        self.rows, self.begun, self.read = rows, 0, 0

    def __iter__(self) -> Any:
        self.begun += 1
        for number in range(self.rows):
            self.read += 1
            yield {"n": number}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 29), min_size=1, max_size=30))
def test_rows_by_number_in_any_order(numbers: list[int]) -> None:
    stream = Counting(30)
    records = StreamRecords(stream, 30, ["n"], "x", [])
    assert [records.read_columns(number, ["n"])["n"] for number in numbers] == numbers
    assert stream.begun == 1 + sum(later < earlier for earlier, later in itertools.pairwise(numbers))


def test_going_forward_reads_every_row_once() -> None:
    stream = Counting(30)
    records = StreamRecords(stream, 30, ["n"], "x", [])
    for number in range(0, 30, 3):
        records.read_columns(number, ["n"])
    assert (stream.begun, stream.read) == (1, 28)


def test_a_stream_that_ends_too_soon_says_so_and_goes_on() -> None:
    records = StreamRecords(Counting(3), 5, ["n"], "x.csv", [])
    assert records.read_columns(2, ["n"]) == {"n": 2}
    with pytest.raises(DataError, match=r"x\.csv ends before row 4") as caught:
        records.read_columns(4, ["n"])
    assert caught.value.hint is not None
    assert records.read_columns(1, ["n"]) == {"n": 1}
    with pytest.raises(DataError, match=r"x\.csv has no column 'm'"):
        records.read_columns(1, ["m"])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=12), last=st.booleans())
def test_lines_are_counted_as_they_are_read(tmp_path: Path, lines: list[str], last: bool) -> None:
    text = "\n".join(["x", *lines]) + "\n" * last
    (tmp_path / "x.txt").write_text(text, encoding="utf-8", newline="")
    records = opened(of_files("text", tmp_path / "x.txt", streaming=True))
    own = datasets.load_dataset("text", data_files=str(tmp_path / "x.txt"), split="train", streaming=True)
    assert len(records) == len(list(own))


def test_how_many_rows_there_are_where_that_cannot_be_seen(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "x.json").write_text(json.dumps(ROWS))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    for format, name in (("csv", "x.csv"), ("json", "x.json"), ("json", "x.jsonl.gz")):
        with pytest.raises(DataError, match="how many rows it has cannot be seen") as caught:
            opened(of_files(format, tmp_path / name, streaming=True))
        assert "size" in str(caught.value.hint)
        records = opened(of_files(format, tmp_path / name, streaming=True, rows=2))
        assert (len(records), len(records.read_columns(1, records.column_names))) == (2, len(records.column_names))


def test_several_files_and_empty_lines(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text('{"a": 1}\n\n{"a": 2}\n')
    second.write_text('{"a": 3}')
    records = opened(of_files("json", first, second, streaming=True))
    assert [records.read_columns(number, ["a"])["a"] for number in range(len(records))] == [1, 2, 3]


def test_handlers_of_a_stream(tmp_path: Path) -> None:
    source = of_files("json", write("json", tmp_path, ROWS), streaming=True)
    tokenizer = write_byte_tokenizer(tmp_path / "tokenizer")
    handlers = (method("skip", n=3), method("take", n=20), encode("text", tokenizer))
    records, table = (
        opened(with_handlers(source, *handlers)),
        opened(with_handlers(of_files("json", source.paths[0]), *handlers)),
    )
    assert len(records) == len(table) == 20
    for number in (0, 5, 19, 2):
        expected = table.read_columns(number, ["input_ids"])["input_ids"].tolist()
        assert records.read_columns(number, ["input_ids"])["input_ids"].tolist() == expected


def test_what_is_wrong_with_a_line_is_said_when_it_is_reached(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: not JSON"):
        opened(of_files("json", path, streaming=True)).read_columns(0, ["a"])


def test_an_empty_folder_and_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="doesn't contain any data files"):
        opened(TableFiles((tmp_path,), streaming=True))
    with pytest.raises(DataError, match="dev"):
        opened(of_files("json", write("json", tmp_path, ROWS), streaming=True, split="dev"))
