"""Protocol buffers' wire format, as far as MindSpore's files need it: nothing is decoded that is not asked for.

https://protobuf.dev/programming-guides/encoding: a field is a varint of its number and wire type, then a varint (type
0), eight bytes (1), a length and as many bytes (2), or four bytes (5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runformer.errors import CheckpointError

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_VARINT_LONGEST = 10


@dataclass(frozen=True, slots=True)
class Field:
    """A field: its number, and its value if it is a number, else where its bytes begin and end."""

    number: int
    value: int
    begin: int
    end: int

    @property
    def is_bytes(self) -> bool:
        """Whether it has bytes."""
        return self.end >= 0


def fields(buffer: bytes | memoryview, begin: int, end: int, where: str) -> Iterator[Field]:
    """The fields of the message between two positions; ``where`` names it in errors.

    Raises:
        CheckpointError: it is none, or ends within a field.
    """
    position = begin
    while position < end:
        key, position = _varint(buffer, position, end, where)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, position = _varint(buffer, position, end, where)
            yield Field(number, value, -1, -1)
            continue
        length = {_EIGHT: 8, _FOUR: 4}.get(kind, -1)
        if kind == _BYTES:
            length, position = _varint(buffer, position, end, where)
        if length < 0 or number == 0 or length > end - position:
            raise CheckpointError(f"{where}: damaged at byte {position}", hint="copy it again")
        yield Field(number, 0, position, position + length)
        position += length


def numbers(buffer: bytes | memoryview, field: Field, where: str) -> list[int]:
    """Signed 64-bit integers of a repeated field, which may be packed into one."""
    if not field.is_bytes:
        return [_signed(field.value)]
    found, position = [], field.begin
    while position < field.end:
        value, position = _varint(buffer, position, field.end, where)
        found.append(_signed(value))
    return found


def text(buffer: bytes | memoryview, field: Field, where: str) -> str:
    """The text of a field.

    Raises:
        CheckpointError: it is none.
    """
    try:
        return bytes(buffer[field.begin : field.end]).decode() if field.is_bytes else str(field.value)
    except UnicodeDecodeError:
        raise CheckpointError(f"{where}: damaged at byte {field.begin}: not text", hint="copy it again") from None


def _varint(buffer: bytes | memoryview, position: int, end: int, where: str) -> tuple[int, int]:
    value = 0
    for shift in range(_VARINT_LONGEST):
        if position >= end:
            break
        byte = buffer[position]
        position += 1
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value & (2**64 - 1), position
    raise CheckpointError(f"{where}: damaged at byte {position}: a number does not end", hint="copy it again")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
