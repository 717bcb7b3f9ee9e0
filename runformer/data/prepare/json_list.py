"""A JSON list in blocks of whole values. It is read through a window, so it may be of any size."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator

from runformer.data.prepare.blocks import BLOCK, MAX_RECORD, Block, Position
from runformer.data.prepare.sources import Source
from runformer.data.prepare.streams import ByteStream
from runformer.errors import DataError

SEPARATOR = b"\x1e"
"""What stands between the values of a block: JSON has no such character but in its escapes."""

_SPACE = " \t\n\r"
_NUMBER_GOES_ON = "e+1"  # so much behind a number may belong to it
_DECODER = json.JSONDecoder()


def list_blocks(source: Source, start: Position) -> Iterator[Block]:
    """The blocks of a file that holds one JSON list, behind ``start``.

    Raises:
        DataError: it cannot be read or is no JSON list, or a value is larger than ``MAX_RECORD``.
    """
    with ByteStream(source.path, source.compression, start.offset) as stream:
        window = _Window(source, stream, start)
        values: list[bytes] = []
        size, first, end = 0, start.number + 1, start
        failure: DataError | None = None
        try:
            for value in window.values():
                values.append(value)
                size += len(value)
                end = window.position()
                if size >= BLOCK:
                    yield Block(source.path, "json_list", SEPARATOR.join(values), first, end, window.consumed)
                    values, size, first = [], 0, window.number + 1
        except DataError as error:
            failure = error  # the records before come first
        if values:
            yield Block(source.path, "json_list", SEPARATOR.join(values), first, end, window.consumed)
        if failure is not None:
            raise failure


class _Window:
    """The part of the file that is looked at: a text, and a place in it."""

    def __init__(self, source: Source, stream: ByteStream, start: Position) -> None:
        self._source = source
        self._stream = stream
        # Bytes that are no UTF-8 go through as they are: the worker that parses the record names it.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._at = 0
        self._source_number = start.source
        self._offset = start.offset  # bytes before self._at
        self._line, self._column = 1, 1  # of self._at, where the file was read from its beginning
        self._from_beginning = start.offset == 0
        self._ended = False
        self.number = start.number

    @property
    def consumed(self) -> int:
        return self._stream.consumed

    def position(self) -> Position:
        """Behind the last value."""
        return Position(self._source_number, self._offset, self.number)

    def values(self) -> Iterator[bytes]:
        if self._from_beginning:
            if self._peek() == "\ufeff":
                self._advance(1)
            self._expect("[")
            if self._peek() == "]":
                self._close()
                return
        elif not self._next_value_follows():
            return
        while True:
            yield self._value()
            if not self._next_value_follows():
                return

    def _next_value_follows(self) -> bool:
        if self._peek() == "]":
            self._close()
            return False
        self._expect(",")
        return True

    def _close(self) -> None:
        self._advance(1)
        if self._peek():
            raise self._error("text behind the end of the list", self._at)

    def _expect(self, character: str) -> None:
        if not (found := self._peek()):
            raise DataError(f"{self._source.path} is cut off: its list has no end", hint="copy or download it again")
        if found != character:
            raise self._error(f"Expecting {character!r}", self._at)
        self._advance(1)

    def _peek(self) -> str:
        """The next character that is no space; none at the end of the file."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in _SPACE:
                end += 1
            self._advance(end - self._at)
            if end < len(self._text):
                return self._text[end]
            if not self._read_more():
                return ""

    def _value(self) -> bytes:
        self._peek()
        while True:
            try:
                _, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                distance = error.pos - self._at
                if not self._may_be_cut(error) or not self._read_more():
                    raise self._error(error.msg, self._at + distance) from error
                continue
            except RecursionError as error:
                raise DataError(f"{self._where()}: nested too deeply", hint=_HINT) from error
            except ValueError as error:  # a whole number with more digits than Python reads
                raise self._error(str(error).split(";")[0], self._at) from error
            if end + len(_NUMBER_GOES_ON) > len(self._text) and not self._ended:
                self._read_more()
                continue
            value = self._text[self._at : end].encode("utf-8", "surrogateescape")
            self.number += 1
            self._advance(end - self._at, len(value))
            return value

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the value may go on behind the window; words and escapes are shorter than 16 characters."""
        return error.msg.startswith("Unterminated string") or error.pos + 16 > len(self._text)

    def _read_more(self) -> bool:
        kept = len(self._text) - self._at
        if kept > MAX_RECORD:
            raise DataError(f"{self._where()} is larger than {MAX_RECORD >> 20} MiB", hint="cut it into smaller ones")
        if self._ended:
            return False
        data = self._stream.read(max(BLOCK, kept))
        self._ended = not data
        more = self._decoder.decode(data, final=self._ended)
        self._text = self._text[self._at :] + more
        self._at = 0
        return bool(more) or not self._ended

    def _advance(self, count: int, size: int | None = None) -> None:
        """Go on by ``count`` characters, which take ``size`` bytes; what is not given is counted."""
        passed = self._text[self._at : self._at + count]
        self._line, self._column = _moved(self._line, self._column, passed)
        self._offset += len(passed.encode("utf-8", "surrogateescape")) if size is None else size
        self._at += count

    def _where(self) -> str:
        return f"{self._source.path}: record {self.number + 1}"

    def _error(self, message: str, at: int) -> DataError:
        if "\udc80" <= self._text[at : at + 1] <= "\udcff":
            return DataError(f"{self._where()} is not UTF-8 text", hint="save the file as UTF-8")
        line, column = _moved(self._line, self._column, self._text[self._at : at])
        place = f"line {line}, column {column}" if self._from_beginning else f"byte {self._offset}, or a little later"
        return DataError(f"{self._where()}: not JSON at {place}: {message}", hint=_HINT)


def _moved(line: int, column: int, passed: str) -> tuple[int, int]:
    lines = passed.count("\n")
    return line + lines, len(passed) - passed.rfind("\n") if lines else column + len(passed)


_HINT = "mend the file: --skip_bad cannot, since nobody knows where the next record begins"
