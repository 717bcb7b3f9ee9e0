"""Targets that read text files of records: JSON lists and lines, CSV, plain text.

A file is read in blocks, from its beginning or from behind any of them. However small the blocks are, and wherever
reading begins anew, the records are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from workplace import workplace

from runformer.data.prepare import blocks, json_list
from runformer.data.prepare.blocks import Block, Position, text_blocks
from runformer.data.prepare.json_list import list_blocks
from runformer.data.prepare.options import Documents
from runformer.data.prepare.records import BadRecord, records_of
from runformer.data.prepare.sources import Kind, Source
from runformer.errors import DataError

Found = tuple[list[Any], str | None]
"""The records as text, and how reading ended where it did not end well."""


_FIELD = rb'(?:"(?:[^"]++|"")*+"|[^",\r\n]*+)(?:\r(?=\n))?'
_QUOTED_WELL = re.compile(rb"(?:" + _FIELD + rb"[,\n])*+" + _FIELD)


def json_lists(data: bytes) -> None:
    """The list splitter against the JSON parser, which reads all at once."""
    whole = _check("json_list", data)
    try:
        text = data.lstrip(b" \t\n\r").removeprefix(b"\xef\xbb\xbf")  # spaces before the mark do no harm
        expected = json.loads(text.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        expected = None
    records, problem = whole
    if not isinstance(expected, list):
        assert problem is not None
        return
    assert problem is None, problem
    assert len(records) == len(expected)
    for found, value in zip(records, expected, strict=True):
        if found[1] is not BadRecord:
            assert found[1] == repr(value)
        else:
            assert not isinstance(value, dict) or not data.isascii()


def json_lines(data: bytes) -> None:
    """A JSON object a line."""
    _check("json_lines", data)


def csv_rows(data: bytes) -> None:
    """Rows of CSV; a quoted field may have line ends.

    Where marks or carriage returns stand within a field, nobody knows where it ends, and blocks may be cut elsewhere.
    A header is small against a block, so it is read as a whole.
    """
    _check("csv", data, sizes=())
    _check("csv", b"a,b\n" + data, sizes=(4, 9, 64) if _QUOTED_WELL.fullmatch(data) else ())


def plain_text(data: bytes) -> None:
    """Documents by lines, by blank lines, and of whole files."""
    for documents in ("line", "blank_line", "file"):
        _check("text", data[1:], documents)


def _check(kind: Kind, data: bytes, documents: Documents = "line", sizes: Sequence[int] = (1, 7, 64)) -> Found:
    """The records, which are the same in large blocks and in small ones, and behind each of these."""
    path = workplace() / f"text.{kind}"
    path.write_bytes(data)
    source = Source(path, kind, None, len(data), 0)
    whole, _ = _read(source, Position(), documents, 1 << 20)
    for size in sizes:
        found, ends = _read(source, Position(), documents, size)
        assert (found[1] is None) == (whole[1] is None), (size, found, whole)
        # Of a file that ends badly more is read in small blocks.
        assert found == whole or (whole[1] is not None and found[0][: len(whole[0])] == whole[0]), (size, found, whole)
        for done, end in ends[:-1][-3:]:
            rest, _ = _read(source, end, documents, size)
            assert rest[0] == found[0][done:], (size, done, rest, found)
            assert (rest[1] is None) == (found[1] is None)
    return whole


def _read(source: Source, start: Position, documents: Documents, size: int) -> tuple[Found, list[tuple[int, Position]]]:
    """What is read in blocks of ``size``; and for each block how many records came up to its end, and where that is."""
    found: list[Any] = []
    ends: list[tuple[int, Position]] = []
    problem = None
    with mock.patch.object(blocks, "BLOCK", size), mock.patch.object(json_list, "BLOCK", size):
        try:
            for block in _blocks(source, start, documents):
                found += [_told(where, record) for where, record in records_of(block)]
                ends.append((len(found), block.end))
        except DataError as error:
            problem = error.message
    assert problem is None or source.path.name in problem
    return (found, problem), ends


def _blocks(source: Source, start: Position, documents: Documents) -> Iterator[Block]:
    return list_blocks(source, start) if source.kind == "json_list" else text_blocks(source, start, documents)


def _told(where: str, record: Mapping[str, Any] | BadRecord) -> tuple[Any, ...]:
    assert where
    return (where, BadRecord, record.problem) if isinstance(record, BadRecord) else (where, repr(record))


def _json_list_seeds() -> Iterator[bytes]:
    yield b"[]"
    yield '[{"a": "é[]{}\\"\\u00e9\\ud83d"}, {"b": [1, {"c": null}], "d": -1.5e3},\n {} ]\n'.encode()
    yield b'\xef\xbb\xbf [1, "x", true, {"k": "\xff"}, 12]'


def _json_lines_seeds() -> Iterator[bytes]:
    yield '{"text": "é"}\n\n{"a": [1]}\r\n[1]\n{"b": "'.encode() + b'\xff"}\n{"c": 1}'


def _csv_seeds() -> Iterator[bytes]:
    yield 'a,b\n1,"two\nlines, ""quoted"""\n\n"é",4\r\nx,y,z\nlast,one'.encode()
    yield b'\xef\xbb\xbf"a;1";b\n1;2\n3;"4'


def _text_seeds() -> Iterator[bytes]:
    yield "_one\ntwo\n\n  \n\nthree é\r\n\r\nfour".encode()


TEXT_TARGETS: Mapping[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "json_lists": (json_lists, _json_list_seeds),
    "json_lines": (json_lines, _json_lines_seeds),
    "csv_rows": (csv_rows, _csv_seeds),
    "plain_text": (plain_text, _text_seeds),
}
