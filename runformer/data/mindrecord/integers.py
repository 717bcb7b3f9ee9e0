"""Packed integer arrays of version 3.0 files.

``[u32 BE count][2-bit width codes, first element in the top bits: 1 << code bytes][values, little-endian signed]``,
each value in the least width that holds it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_COUNT_BYTES = 4
_SHIFTS = np.array([6, 4, 2, 0], dtype=np.uint8)
# The four widths in bytes that one byte of codes stands for: shape (256, 4).
_WIDTHS = (1 << ((np.arange(256, dtype=np.uint8)[:, None] >> _SHIFTS) & 3)).astype(np.uint8)


def pack_integers(values: NDArray[np.signedinteger[Any]]) -> bytes:
    """Pack an int32 or int64 array of any shape (the shape is not kept)."""
    wide = values.ravel().astype("<i8")
    codes = np.zeros(-(-wide.size // 4) * 4, dtype=np.uint8)
    for code, bits in ((1, 7), (2, 15), (3, 31)):
        codes[: wide.size][(wide < -(1 << bits)) | (wide >= 1 << bits)] = code
    packed_codes: NDArray[np.uint8] = np.bitwise_or.reduce(codes.reshape(-1, 4) << _SHIFTS, axis=1, dtype=np.uint8)
    # Row-major selection of each value's low bytes puts them one after another.
    kept = np.arange(8) < (1 << codes[: wide.size, None].astype(np.int64))
    value_bytes = wide.view(np.uint8).reshape(-1, 8)[kept]
    return wide.size.to_bytes(_COUNT_BYTES, "big") + packed_codes.tobytes() + value_bytes.tobytes()


def unpack_integers(packed: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The flat array of int32 or int64 (``dtype``) that ``pack_integers`` packed.

    Raises:
        ValueError: the bytes are no packed array, or a value does not fit ``dtype``.
    """
    count = int.from_bytes(packed[:_COUNT_BYTES], "big")
    begin = _COUNT_BYTES + -(-count // 4)
    # Every value takes a byte or more: nothing is allocated for a count that the bytes cannot hold.
    if len(packed) < begin + count:
        raise ValueError(f"{len(packed)} bytes cannot hold {count} packed integers")
    codes = np.frombuffer(packed, np.uint8, begin - _COUNT_BYTES, _COUNT_BYTES)
    widths = _WIDTHS[codes].reshape(-1)[:count].astype(np.int64)
    ends = np.cumsum(widths)
    size = int(ends[-1]) if count else 0
    if size != len(packed) - begin:
        raise ValueError(f"packed integers take {size} bytes, but there are {len(packed) - begin}")
    if dtype.itemsize == 4 and bool((widths == 8).any()):
        raise ValueError("a packed integer is wider than int32")
    # Load 8 bytes at every value's (unaligned) place, then let two shifts drop the rest and extend the sign.
    windows = np.ndarray((size + 1,), "<i8", packed[begin:] + bytes(8), strides=(1,))
    unused_bits = 64 - 8 * widths
    values: NDArray[Any] = ((windows[ends - widths] << unused_bits) >> unused_bits).astype(dtype)
    return values
