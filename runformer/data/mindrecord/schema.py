"""The columns of a MindRecord file and their types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

INTEGERS = ("int32", "int64")
FLOATS = ("float32", "float64")
TYPES = (*INTEGERS, *FLOATS, "string", "bytes")

_NAME = re.compile(r"[0-9a-zA-Z_]+")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: ``type`` is one of ``TYPES``; ``shape`` makes it an array, where one size may be -1 (any).

    Arrays are int32, int64, float32 or float64; without a shape these are single numbers.

    Raises:
        ValueError: no such type or shape.
    """

    type: str
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise ValueError(f"type {self.type!r} is none of {', '.join(TYPES)}")
        if self.shape is None:
            return
        if self.type not in INTEGERS + FLOATS:
            raise ValueError(f"a {self.type} column has no shape")
        if not self.shape or self.shape.count(-1) > 1 or any(size < 1 and size != -1 for size in self.shape):
            raise ValueError(f"shape {list(self.shape)} should be positive sizes, at most one of them -1")

    @property
    def is_blob(self) -> bool:
        """Whether values lie in blob pages (arrays and bytes) rather than raw pages (numbers and text)."""
        return self.shape is not None or self.type == "bytes"

    @property
    def is_integer_array(self) -> bool:
        """Whether values are packed (see ``integers``) in version 3.0 files."""
        return self.shape is not None and self.type in INTEGERS

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The little-endian dtype of a number or an array's element."""
        return np.dtype(self.type).newbyteorder("<")


Schema = Mapping[str, Column]


def check_names(names: Mapping[str, object]) -> None:
    """Raise ValueError where a column's name is not letters, digits and underscores, or there is no column."""
    if not names:
        raise ValueError("there is no column")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"column name {name!r} should be letters, digits and underscores")


def blob_columns(schema: Schema) -> list[str]:
    """The names of blob columns in their order in a record: alphabetical."""
    return sorted(name for name, column in schema.items() if column.is_blob)


def raw_columns(schema: Schema) -> list[str]:
    """The names of raw columns in their order in a record: alphabetical."""
    return sorted(name for name, column in schema.items() if not column.is_blob)
