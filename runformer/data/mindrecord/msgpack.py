"""The part of msgpack that raw pages use: one map from text to a whole number, a float or a text."""

from __future__ import annotations

import struct
from collections.abc import Mapping

Scalar = int | float | str

# Integer formats by their first byte; the non-negative ones come first since the shortest is taken.
_INTEGERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_FLOATS = {0xCA: ">f", 0xCB: ">d"}
_TEXT_LENGTHS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_MAP_LENGTHS = {0xDE: ">H", 0xDF: ">I"}


def pack_map(values: Mapping[str, Scalar]) -> bytes:
    """Pack a map in the order given, as MindSpore does: integers and floats in their shortest exact form."""
    head = bytes([0x80 | len(values)]) if len(values) < 16 else _sized(len(values), _MAP_LENGTHS)
    return head + b"".join(_pack_text(name) + _pack(value) for name, value in values.items())


def _pack(value: Scalar) -> bytes:
    if isinstance(value, str):
        return _pack_text(value)
    if isinstance(value, int):
        return _pack_integer(value)
    try:
        short = struct.pack(">f", value)
    except OverflowError:
        return b"\xcb" + struct.pack(">d", value)
    exact = struct.unpack(">f", short)[0] == value
    return b"\xca" + short if exact else b"\xcb" + struct.pack(">d", value)


def _pack_integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b", value)
    return _sized(value, _INTEGERS)


def _pack_text(text: str) -> bytes:
    data = text.encode()
    return (bytes([0xA0 | len(data)]) if len(data) < 32 else _sized(len(data), _TEXT_LENGTHS)) + data


def _sized(value: int, formats: Mapping[int, str]) -> bytes:
    for first, form in formats.items():
        try:
            return bytes([first]) + struct.pack(form, value)
        except struct.error:
            continue
    raise ValueError(f"{value} has more than 64 bits")


def unpack_map(data: bytes) -> dict[str, Scalar]:
    """Unpack one map that fills ``data``.

    Raises:
        ValueError: the bytes are anything else.
    """
    try:
        entries, position = _map_length(data)
        values: dict[str, Scalar] = {}
        for _ in range(entries):
            name, position = _unpack(data, position)
            if not isinstance(name, str):
                raise ValueError("a msgpack key is not a text")
            values[name], position = _unpack(data, position)
    except (IndexError, struct.error) as error:
        raise ValueError("a msgpack map is cut off") from error
    if position != len(data):
        raise ValueError(f"{len(data) - position} bytes follow a msgpack map")
    return values


def _map_length(data: bytes) -> tuple[int, int]:
    if 0x80 <= data[0] < 0x90:
        return data[0] & 0x0F, 1
    if data[0] in _MAP_LENGTHS:
        return _number(data, 1, _MAP_LENGTHS[data[0]])
    raise ValueError("a raw record is not a msgpack map")


def _unpack(data: bytes, position: int) -> tuple[Scalar, int]:
    first = data[position]
    position += 1
    if first < 0x80 or first >= 0xE0:
        return first - (0x100 if first >= 0xE0 else 0), position
    if 0xA0 <= first < 0xC0:
        return _text(data, position, first & 0x1F)
    if first in _TEXT_LENGTHS:
        length, position = _number(data, position, _TEXT_LENGTHS[first])
        return _text(data, position, length)
    if first in _FLOATS:
        return struct.unpack_from(_FLOATS[first], data, position)[0], position + struct.calcsize(_FLOATS[first])
    if first in _INTEGERS:
        return _number(data, position, _INTEGERS[first])
    raise ValueError(f"msgpack type 0x{first:02x} does not occur in MindRecord")


def _number(data: bytes, position: int, form: str) -> tuple[int, int]:
    return struct.unpack_from(form, data, position)[0], position + struct.calcsize(form)


def _text(data: bytes, position: int, length: int) -> tuple[str, int]:
    end = position + length
    if end > len(data):
        raise ValueError("a msgpack text is cut off")
    return data[position:end].decode(), end
