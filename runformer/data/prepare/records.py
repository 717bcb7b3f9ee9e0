"""Blocks → records: columns by their names. A record that cannot be read is a ``BadRecord`` and not an error."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from runformer.data.formats import Columns
from runformer.data.prepare.blocks import BLANK_LINE, MAX_RECORD, Block
from runformer.data.prepare.json_list import SEPARATOR
from runformer.errors import DataError

LINE_END = b"\n"
LINE_FORM = 'a line holds an object each, such as {"instruction": "…", "output": "…"}'
LIST_FORM = 'the list holds objects, such as {"instruction": "…", "output": "…"}'


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be used: where it is, what is wrong, and what to do."""

    where: str
    problem: str
    hint: str

    def error(self) -> DataError:
        """The same as an error."""
        return DataError(self.message, hint=self.hint or None)

    @property
    def message(self) -> str:
        """Where and what, in one line."""
        return f"{self.where}{self.problem}"

    def as_json(self) -> str:
        """A line for the file of bad records."""
        return json.dumps(asdict(self), ensure_ascii=True)


def records_of(block: Block) -> Iterator[tuple[str, Columns | BadRecord]]:
    """The records of a block in order, each with its place for messages."""
    match block.kind:
        case "json_lines":
            return _json_lines(block)
        case "json_list":
            return _json_values(block)
        case "csv":
            return _csv_rows(block)
        case "text":
            return _documents(block)
        case "parquet" | "arrow":
            return _table_rows(block)


def _json_lines(block: Block) -> Iterator[tuple[str, Columns | BadRecord]]:
    for number, line in enumerate(block.data.split(b"\n"), start=block.first):
        if line.strip():
            where = f"{block.path}: line {number}"
            yield where, _from_json(line, where, LINE_FORM)


def _json_values(block: Block) -> Iterator[tuple[str, Columns | BadRecord]]:
    for number, value in enumerate(block.data.split(SEPARATOR), start=block.first):
        where = f"{block.path}: record {number}"
        yield where, _from_json(value, where, LIST_FORM)


def _from_json(data: bytes, where: str, form: str) -> Columns | BadRecord:
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _not_utf8(where, error)
    except json.JSONDecodeError as error:
        return BadRecord(where, f": not JSON at column {error.colno}: {error.msg}", form)
    except RecursionError:
        return BadRecord(where, ": nested too deeply", form)
    except ValueError as error:  # a whole number with more digits than Python reads
        return BadRecord(where, f": {str(error).split(';')[0]}", form)
    if not isinstance(value, dict):
        return BadRecord(where, f" is not an object, but {type(value).__name__}", form)
    return value


def _not_utf8(where: str, error: UnicodeDecodeError) -> BadRecord:
    byte = error.object[error.start]
    return BadRecord(where, f" is not UTF-8 text: byte {error.start + 1} is 0x{byte:02x}", "save the file as UTF-8")


def _csv_rows(block: Block) -> Iterator[tuple[str, Columns | BadRecord]]:
    csv.field_size_limit(MAX_RECORD)
    lines = io.StringIO(block.data.decode("utf-8", "surrogateescape"), newline="\n")
    reader = csv.reader(lines, delimiter=block.delimiter, strict=True)
    first = 0
    while True:
        where = f"{block.path}: line {block.first + first}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            first = reader.line_num
            hint = 'quote fields with " and double it within them'
            yield where, BadRecord(where, f" is no CSV: {error}", hint)
            continue
        first = reader.line_num
        if fields:
            yield where, _csv_row(block.header, fields, where)


def _csv_row(header: tuple[str, ...], fields: list[str], where: str) -> Columns | BadRecord:
    if len(fields) != len(header):
        problem = f" has {len(fields)} fields, but there are {len(header)} columns: {', '.join(header)}"
        return BadRecord(where, problem, 'quote fields that hold commas or line ends with "')
    for name, text in zip(header, fields, strict=True):
        if any("\udc80" <= character <= "\udcff" for character in text) if not text.isascii() else False:
            return BadRecord(where, f": {name!r} is not UTF-8 text", "save the file as UTF-8")
    return dict(zip(header, fields, strict=True))


def _documents(block: Block) -> Iterator[tuple[str, Columns | BadRecord]]:
    number = block.first
    for document, lines in _split_documents(block):
        if document.strip():
            leading = document[: len(document) - len(document.lstrip(b"\r\n"))]
            where = f"{block.path}: line {number + leading.count(LINE_END)}"
            try:
                # What ends its last line, and the lines before its first one, are no part of a document.
                yield where, {"text": document.strip(b"\r\n").decode("utf-8")}
            except UnicodeDecodeError as error:
                yield where, _not_utf8(where, error)
        number += lines


def _split_documents(block: Block) -> Iterator[tuple[bytes, int]]:
    """The documents of a block, each with the line ends from its beginning to that of the next one."""
    if block.documents == "file":
        yield block.data, 0
    elif block.documents == "line":
        for line in block.data.split(b"\n"):
            yield line, 1
    else:
        begin = 0
        for gap in BLANK_LINE.finditer(block.data):
            yield block.data[begin : gap.start()], block.data.count(b"\n", begin, gap.end())
            begin = gap.end()
        yield block.data[begin:], 0


def _table_rows(block: Block) -> Iterator[tuple[str, Columns | BadRecord]]:
    from runformer.data.prepare.tables import rows_of

    for number, row in enumerate(rows_of(block.data), start=block.first):
        where = f"{block.path}: row {number}"
        yield where, BadRecord(where, " is not UTF-8 text", "write the table again") if row is None else row
