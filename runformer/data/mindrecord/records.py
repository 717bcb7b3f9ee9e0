"""One record in bytes: its blob part (arrays and bytes) and its raw part (numbers and text).

With one blob column the blob part is that column's bytes; with several, ``[u64 BE n][n bytes]`` for each in
alphabetical order; with none, four zero bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runformer.data.mindrecord.integers import pack_integers, unpack_integers
from runformer.data.mindrecord.msgpack import Scalar, pack_map, unpack_map
from runformer.data.mindrecord.schema import INTEGERS, Column, Schema, blob_columns, raw_columns

Value = Scalar | bytes | NDArray[Any]
Record = Mapping[str, Value]

_PART_LENGTH = struct.Struct(">Q")
_NO_BLOB = bytes(4)
_NO_RAW: dict[str, Scalar] = {"id": 0}


def encode_record(record: Record, schema: Schema) -> tuple[bytes, bytes, int]:
    """A record's blob part, raw part, and how many bytes packing its integer arrays saved (may be negative).

    Raises:
        ValueError: a column is missing or unknown, or a value has not its column's type and shape.
    """
    if record.keys() != schema.keys():
        raise ValueError(f"columns {sorted(record)} should be {sorted(schema)}")
    blobs = blob_columns(schema)
    parts = [_encode_blob(name, record[name], schema[name]) for name in blobs]
    plain_size = sum(_plain_size(record[name]) for name in blobs)
    scalars = {name: _checked_scalar(name, record[name], schema[name]) for name in raw_columns(schema)}
    return _join(parts), pack_map(scalars or _NO_RAW), plain_size - sum(map(len, parts))


def _plain_size(value: Value) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else len(value) if isinstance(value, bytes) else 0


def _join(parts: list[bytes]) -> bytes:
    if len(parts) == 1:
        return parts[0]
    return b"".join(_PART_LENGTH.pack(len(part)) + part for part in parts) or _NO_BLOB


def _encode_blob(name: str, value: Value, column: Column) -> bytes:
    if column.shape is None:
        if not isinstance(value, bytes):
            raise ValueError(f"column {name!r}: {_kind(value)} should be bytes")
        return value
    # MindSpore drops an array of another dtype or shape with a warning; nothing should vanish from a dataset.
    if not isinstance(value, np.ndarray) or value.dtype != column.dtype or not _has_shape(value, column.shape):
        raise ValueError(f"column {name!r}: {_kind(value)} should be an array of {column.type} {list(column.shape)}")
    return pack_integers(value) if column.is_integer_array else value.astype(column.dtype).tobytes()


def _has_shape(value: NDArray[Any], shape: tuple[int, ...]) -> bool:
    return value.ndim == len(shape) and all(want in (-1, size) for want, size in zip(shape, value.shape, strict=True))


def _checked_scalar(name: str, value: Value, column: Column) -> Scalar:
    if column.type == "string":
        if isinstance(value, str):
            return value
    elif column.type in INTEGERS:
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            bounds = np.iinfo(column.type)
            if bounds.min <= value <= bounds.max:
                return int(value)
            raise ValueError(f"column {name!r}: {value} does not fit {column.type}")
    elif isinstance(value, float | np.floating):
        # MindSpore aborts the process on an infinity in a scalar column.
        if math.isfinite(value) and abs(value) <= float(np.finfo(column.type).max):
            return float(column.dtype.type(value))
        raise ValueError(f"column {name!r}: {value} does not fit {column.type}")
    raise ValueError(f"column {name!r}: {_kind(value)} should be {column.type}")


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    return f"a value of type {type(value).__name__}"


def decode_blob(data: bytes, schema: Schema, wanted: Collection[str], packed: bool) -> dict[str, Value]:
    """The ``wanted`` columns of a blob part; ``packed`` tells version 3.0's integer arrays from 2.0's plain ones.

    Raises:
        ValueError: the bytes do not hold these columns.
    """
    names = blob_columns(schema)
    parts = [data] if len(names) == 1 else _split(data, len(names))
    return {
        name: _decode_blob(name, part, schema[name], packed)
        for name, part in zip(names, parts, strict=True)
        if name in wanted
    }


def _split(data: bytes, count: int) -> list[bytes]:
    parts, position = [], 0
    for _ in range(count):
        begin = position + _PART_LENGTH.size
        if begin > len(data):
            raise ValueError("the arrays of a record are cut off")
        position = begin + _PART_LENGTH.unpack_from(data, position)[0]
        parts.append(data[begin:position])
    if position != len(data):
        raise ValueError(f"the arrays of a record take {position} bytes, but there are {len(data)}")
    return parts


def _decode_blob(name: str, data: bytes, column: Column, packed: bool) -> Value:
    if column.shape is None:
        return data
    try:
        if packed and column.is_integer_array:
            flat = unpack_integers(data, column.dtype)
        else:
            flat = np.frombuffer(data, column.dtype).copy()
        return flat.reshape(column.shape)
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}") from error


def decode_raw(data: bytes, schema: Schema, wanted: Collection[str]) -> dict[str, Value]:
    """The ``wanted`` columns of a raw part: int, float or str.

    Raises:
        ValueError: the bytes are not these columns.
    """
    scalars = unpack_map(data)
    names = [name for name in raw_columns(schema) if name in wanted]
    return {name: _decoded_scalar(name, scalars.get(name), schema[name]) for name in names}


def _decoded_scalar(name: str, value: Scalar | None, column: Column) -> Scalar:
    if column.type == "string":
        if isinstance(value, str):
            return value
    elif column.type in INTEGERS:
        if isinstance(value, int) and np.iinfo(column.type).min <= value <= np.iinfo(column.type).max:
            return value
    elif isinstance(value, int | float):
        return float(value)
    raise ValueError(f"column {name!r} holds {value!r}, which is not {column.type}")
