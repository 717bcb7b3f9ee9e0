"""Text files in blocks of whole records: only where records end is looked for; workers parse them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from runformer.data.prepare.options import Documents
from runformer.data.prepare.sources import Kind, Source
from runformer.data.prepare.streams import ByteStream
from runformer.errors import DataError

BLOCK = 1 << 20  # bytes of a block, about
MAX_RECORD = 128 << 20  # bytes
_HEADER = 1 << 20  # bytes that the names of CSV's columns may take
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

BLANK_LINE = re.compile(rb"\n[ \t\r\f\v]*\n")


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two records. ``source`` is the number of a file; ``offset`` counts its decompressed bytes (rows,
    where it is a table); ``number`` the lines or records before.
    """

    source: int = 0
    offset: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """Whole records as bytes, with what it takes to parse them and to say where they are.

    ``first`` is the number of the first line or record, from 1. ``end`` is where the next block begins; ``consumed``
    counts bytes of the file on disk up to there, about. ``header`` and ``delimiter`` are those of CSV.
    """

    path: Path
    kind: Kind
    data: bytes
    first: int
    end: Position
    consumed: int
    header: tuple[str, ...] = ()
    delimiter: str = ","
    documents: Documents = "line"


def text_blocks(source: Source, start: Position, documents: Documents) -> Iterator[Block]:
    """The blocks of a file of JSON lines, CSV or plain text behind ``start``.

    Raises:
        DataError: it cannot be read, or a record is larger than ``MAX_RECORD``.
    """
    if source.kind == "csv":
        yield from _csv_blocks(source, start)
        return
    documents = documents if source.kind == "text" else "line"
    begin = Block(source.path, source.kind, b"", start.number + 1, start, 0, documents=documents)
    yield from _blocks(source, begin, _CUTS[documents])


def _blocks(source: Source, begin: Block, last_end: Callable[[bytearray], int]) -> Iterator[Block]:
    """Blocks like ``begin``; ``last_end`` says how many bytes of a buffer are whole records."""
    position, buffer = begin.end, bytearray()
    with ByteStream(source.path, source.compression, position.offset) as stream:
        while True:
            data = stream.read(max(BLOCK, len(buffer)))
            buffer += data
            end = last_end(buffer) if data else len(buffer)
            if end:
                block = bytes(buffer[:end])
                del buffer[:end]
                lines = position.number + block.count(b"\n")
                first, position = position.number + 1, Position(position.source, position.offset + end, lines)
                if begin.end.offset == 0 and first == 1:
                    block = block.removeprefix(BYTE_ORDER_MARK)
                yield replace(begin, data=block, first=first, end=position, consumed=stream.consumed)
            elif len(buffer) > MAX_RECORD:
                where = f"{source.path}: line {position.number + 1}"
                message = f"{where} begins a record of more than {MAX_RECORD >> 20} MiB"
                quote = " (a quotation mark that is never closed?)" if source.kind == "csv" else ""
                raise DataError(message + quote, hint="cut it into smaller ones")
            if not data:
                return


def _line_end(buffer: bytearray) -> int:
    return buffer.rfind(b"\n") + 1


def _blank_line_end(buffer: bytearray) -> int:
    """Behind the last blank line that is certain to be whole."""
    size = 1 << 12
    while True:
        begin = max(0, len(buffer) - size)
        ends = [found.end() for found in BLANK_LINE.finditer(buffer, begin)]
        if ends or begin == 0:
            return ends[-1] if ends else 0
        size *= 8


def _never(_: bytearray) -> int:
    return 0


_CUTS: dict[Documents, Callable[[bytearray], int]] = {
    "line": _line_end,
    "blank_line": _blank_line_end,
    "file": _never,
}


def _record_end(buffer: bytearray) -> int:
    """Behind the last line end that is in no quotation: an even number of marks stands before it."""
    end, marks = len(buffer), buffer.count(b'"')
    while (line_end := buffer.rfind(b"\n", 0, end)) >= 0:
        marks -= buffer.count(b'"', line_end, end)
        if marks % 2 == 0:
            return line_end + 1
        end = line_end
    return 0


def _csv_blocks(source: Source, start: Position) -> Iterator[Block]:
    header, delimiter, size, lines = _csv_header(source)
    if start.offset == 0:
        start = Position(start.source, size, lines)
    begin = Block(source.path, "csv", b"", start.number + 1, start, 0, tuple(header), delimiter)
    if header:
        yield from _blocks(source, begin, _record_end)


def _csv_header(source: Source) -> tuple[list[str], str, int, int]:
    """The names of the columns, what separates them, and how many bytes and lines they take."""
    with ByteStream(source.path, source.compression) as stream:
        head = stream.read(_HEADER)
    mark = len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
    text = head[mark:].decode("utf-8", "replace")
    delimiter = _delimiter(source.path, text.split("\n", 1)[0])
    lines = io.StringIO(text, newline="\n")
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise DataError(f"{source.path}: line 1: the header is no CSV: {error}") from error
    if any(text.strip() for text in header) and len(set(header)) < len(header):
        raise DataError(f"{source.path}: line 1: two columns have one name: {', '.join(header)}")
    size = 0
    for _ in range(reader.line_num):
        size = (head.find(b"\n", size) + 1) or len(head)
    return [name.strip() for name in header], delimiter, size, reader.line_num


def _delimiter(path: Path, header: str) -> str:
    if ".tsv" in path.name.lower():
        return "\t"
    return max(",;\t", key=header.count)  # the first where they are equal
