"""Files in blocks: nothing is lost, nothing is torn, and any block may be the first one of a later run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runformer.data.prepare import blocks, json_list, tables
from runformer.data.prepare.blocks import Block, Position, text_blocks
from runformer.data.prepare.json_list import list_blocks
from runformer.data.prepare.options import Documents
from runformer.data.prepare.records import BadRecord, records_of
from runformer.data.prepare.sources import find_sources
from runformer.data.prepare.tables import table_blocks
from runformer.errors import DataError

BEGINNING = Position()
SMALL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LINES = st.lists(st.text("ab \t", min_size=1, max_size=4).filter(str.strip), min_size=1, max_size=3)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)
RECORDS = st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=8)


@pytest.fixture(params=[1, 7, 64, 1 << 20])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    size: int = request.param
    for module in (blocks, json_list, tables):
        monkeypatch.setattr(module, "BLOCK", size)
    return size


def read(path: Path, start: Position = BEGINNING, documents: Documents = "blank_line") -> Iterator[Block]:
    (source,) = find_sources([str(path)])
    if source.kind == "json_list":
        return list_blocks(source, start)
    if source.kind in ("parquet", "arrow"):
        return table_blocks(source, start, list)
    return text_blocks(source, start, documents)


def records(found: Iterator[Block] | list[Block]) -> list[Any]:
    return [record for block in found for _, record in records_of(block)]


def places(found: list[Block]) -> list[str]:
    return [where for block in found for where, _ in records_of(block)]


def assert_restarts(path: Path, documents: Documents = "blank_line") -> list[Any]:
    """Every block's end is a beginning; the records of all."""
    all_blocks = list(read(path, documents=documents))
    for number, block in enumerate(all_blocks):
        rest = list(read(path, block.end, documents))
        assert records(rest) == records(all_blocks[number + 1 :])
        assert places(rest) == places(all_blocks[number + 1 :])
    return records(all_blocks)


@pytest.mark.usefixtures("block_size")
@SMALL
@given(RECORDS, st.sampled_from([None, 1, "\t"]), st.booleans(), st.booleans())
def test_a_json_list(block_size: int, tmp_path: Path, values: list[Any], indent: Any, ascii: bool, mark: bool) -> None:
    path = tmp_path / "x.json"
    text = json.dumps(values, indent=indent, ensure_ascii=ascii)
    path.write_text(("\ufeff" if mark else "") + f" {text}\n ", encoding="utf-8")
    assert assert_restarts(path) == values
    if block_size == 1:
        assert len(list(read(path))) == len(values)


@SMALL
@given(RECORDS, st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())
def test_json_lines(tmp_path: Path, values: list[Any], end: str, ended: bool) -> None:
    path = tmp_path / "x.jsonl"
    text = end.join(json.dumps(value, ensure_ascii=False) for value in values)
    path.write_bytes((text + end * ended).encode())
    assert assert_restarts(path) == values


@pytest.mark.usefixtures("block_size")
@SMALL
@given(
    st.lists(st.lists(TEXT.map(lambda t: t.replace("\r", "")), min_size=2, max_size=2), max_size=8),
    st.sampled_from(["\n", "\r\n"]),
)
def test_csv(tmp_path: Path, values: list[list[str]], end: str) -> None:
    path = tmp_path / "x.csv"
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=end)
    writer.writerow(["a,b", "text"])
    writer.writerows(values)
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    assert assert_restarts(path) == [{"a,b": first, "text": second} for first, second in values]


@pytest.mark.usefixtures("block_size")
@SMALL
@given(st.lists(LINES, max_size=6), st.data())
def test_documents_of_a_text(tmp_path: Path, paragraphs: list[list[str]], data: st.DataObject) -> None:
    path = tmp_path / "x.txt"
    gap = st.sampled_from(["\n\n", "\n \n", "\n\n\n", "\r\n\r\n", "\n\t\n \n"])
    text = "".join("\n".join(lines) + data.draw(gap) for lines in paragraphs)
    path.write_bytes(text.encode())
    expected = [{"text": "\n".join(lines)} for lines in paragraphs]
    assert [{"text": each["text"].strip()} for each in assert_restarts(path)] == [
        {"text": each["text"].strip()} for each in expected
    ]
    lines = [line for line in text.replace("\r", "").split("\n") if line.strip()]
    assert [each["text"] for each in assert_restarts(path, "line")] == lines
    whole = assert_restarts(path, "file")
    assert [each["text"].strip() for each in whole] == ([text.strip()] if text.strip() else [])


def test_where_documents_are(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("one\ntwo\n\n\n\nthree\n \nfour")
    assert [where for block in read(path) for where, _ in records_of(block)] == [
        f"{path}: line {number}" for number in (1, 6, 8)
    ]


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables(tmp_path: Path, kind: str) -> None:
    import pyarrow
    from pyarrow import parquet

    values = [{"text": f"row {n}", "n": n, "list": [{"a": "x" * n}]} for n in range(50)]
    table = pyarrow.Table.from_pylist(values)
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=20)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
    assert assert_restarts(path) == values
    (source,) = find_sources([str(path)])
    assert records(table_blocks(source, Position(), lambda _: ["n"])) == [{"n": n} for n in range(50)]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=rf"x\.{kind} is damaged or cut off"):
        list(read(path))


def test_a_text_in_a_table_that_is_no_utf8(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    raw = pyarrow.array([b"fine", b"\xff", b"too"], pyarrow.binary())
    broken = pyarrow.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "x.parquet")
    first, second, third = records(read(tmp_path / "x.parquet"))
    assert (first, third) == ({"text": "fine"}, {"text": "too"})
    assert isinstance(second, BadRecord)
    assert second.message == f"{tmp_path / 'x.parquet'}: row 2 is not UTF-8 text"


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}', "is cut off: its list has no end"),
        ('[{"a": 1},', "record 2: not JSON at line 1, column 11: Expecting value"),
        ('[{"a": 1} {"a": 2}]', "record 2: not JSON at line 1, column 11: Expecting ','"),
        ('[\n{"a": 1},\n{"a": tru}]', "record 2: not JSON at line 3, column 7: Expecting value"),
        ('[{"a": "x\ny"}]', "record 1: not JSON at line 1, column 10: Invalid control character"),
        ('[{"a": 1}] []', "record 2: not JSON at line 1, column 12: text behind the end"),
        ('[{"a": "x', "record 1: not JSON at line 1, column 8: Unterminated string"),
        ("[" * 100000, "record 1: nested too deeply"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        list(read(path))
    assert message in caught.value.message
    assert caught.value.hint


def test_bytes_that_are_no_utf8_are_named_where_they_are(tmp_path: Path) -> None:
    bad = b'{"a": "\xff"}'
    (tmp_path / "x.json").write_bytes(b'[{"a": "b"}, ' + bad + b', {"a": "c"}]')
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "b"}\n' + bad + b'\n{"a": "c"}\n')
    (tmp_path / "x.csv").write_bytes(b"a\nb\n\xff\nc\n")
    (tmp_path / "x.txt").write_bytes(b"b\n\n\xff\n\nc\n")
    for name, place in (("x.json", "record 2"), ("x.jsonl", "line 2"), ("x.csv", "line 3"), ("x.txt", "line 3")):
        first, second, third = records(read(tmp_path / name))
        assert isinstance(second, BadRecord)
        assert second.where == f"{tmp_path / name}: {place}"
        assert "is not UTF-8 text" in second.problem
        assert [list(each.values()) for each in (first, third)] == [["b"], ["c"]]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a,b\n1,2\n3\n4,5\n", "line 3", "has 1 fields, but there are 2 columns: a, b"),
        ('a,b\n1,2\n"3"x,4\n4,5\n', "line 3", "is no CSV: ',' expected after '\"'"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, text: str, place: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    first, second, third = records(read(tmp_path / "x.csv"))
    assert isinstance(second, BadRecord)
    assert (second.where, second.problem.strip()) == (f"{tmp_path / 'x.csv'}: {place}", message)
    assert (first, third) == ({"a": "1", "b": "2"}, {"a": "4", "b": "5"})


@pytest.mark.parametrize(("name", "separator"), [("x.csv", ";"), ("x.csv", "\t"), ("x.tsv", "\t")])
def test_other_separators(tmp_path: Path, name: str, separator: str) -> None:
    (tmp_path / name).write_text(f"a{separator}b\n1,5{separator}2\n")
    assert records(read(tmp_path / name)) == [{"a": "1,5", "b": "2"}]


def test_headers(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="line 1: two columns have one name: a, a"):
        list(read(path))
    path.write_text("")
    assert records(read(path)) == []
    path.write_bytes(b'\xef\xbb\xbf"a\nb",c\n1,2\n')
    assert [(where, record) for block in read(path) for where, record in records_of(block)] == [
        (f"{path}: line 3", {"a\nb": "1", "c": "2"})
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", '{"a": "' + "x" * 3000, "line 1 begins a record of more than"),
        (
            "x.csv",
            'a\nb\n"' + "x\n" * 1500,
            "line 3 begins a record of more than 0 MiB (a quotation mark",
        ),
        ("x.json", '["' + "x" * 3000 + '"]', "record 1 is larger than"),
        ("x.txt", "x\n" * 1500, "line 1 begins a record"),
    ],
)
def test_records_have_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    for module in (blocks, json_list):
        monkeypatch.setattr(module, "BLOCK", 64)
        monkeypatch.setattr(module, "MAX_RECORD", 1000)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        list(read(tmp_path / name))
    assert f"{tmp_path / name}: {message}" in caught.value.message


def test_whole_numbers_without_end(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": ' + "1" * 5000 + "}")
    (bad,) = records(read(tmp_path / "x.jsonl"))
    assert isinstance(bad, BadRecord)
    assert "Exceeds the limit" in bad.problem
