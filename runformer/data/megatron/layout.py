"""How an indexed dataset lies in its two files.

``PREFIX.bin`` is the tokens of all sequences, one after the other. ``PREFIX.idx`` is, little endian and without gaps::

    9 bytes   MMIDIDX, two zeros
    u64       version, 1
    u8        code of the tokens' dtype
    u64 u64   number S of sequences, number D of document indices
    S × i32   lengths, in tokens
    S × i64   pointers, in bytes of PREFIX.bin
    D × i64   document indices: the first sequence of each document, and S behind the last
    S × i8    modes, which only multimodal datasets have
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f8"),
    7: np.dtype("<f4"),
    8: np.dtype("<u2"),
}
LENGTH, POINTER, DOCUMENT, MODE = np.dtype("<i4"), np.dtype("<i8"), np.dtype("<i8"), np.dtype("i1")


def data_path(prefix: str | Path) -> Path:
    """The file of tokens. A prefix may have dots in it."""
    return Path(f"{prefix}.bin")


def index_path(prefix: str | Path) -> Path:
    """The file that says where sequences lie."""
    return Path(f"{prefix}.idx")
