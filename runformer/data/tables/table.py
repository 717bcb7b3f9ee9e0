"""A table as records: rows by number, from the files that the library has mapped into memory."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runformer.data.records import Records
from runformer.errors import DataError

Lengths = NDArray[np.int64]


class TableRecords(Records):
    """The rows of a ``datasets.Dataset``; lists of integers are read as arrays, anything else as Python objects."""

    def __init__(self, table: Any, name: str) -> None:
        self.table = table
        self.name = name
        self._views = lru_cache(maxsize=8)(self._view)

    @property
    def column_names(self) -> Sequence[str]:
        """Those of the table."""
        return list(self.table.column_names)

    def __len__(self) -> int:
        return len(self.table)

    def describe(self, record: int) -> str:
        """The files, and the row counted from 0."""
        return f"{self.name}, row {record}"

    def read_columns(self, record: int, columns: Sequence[str]) -> dict[str, Any]:
        """As ``Records``; a column of lists of integers that is null, or holds one, is a DataError."""
        tokens, others = self._views(tuple(columns))
        values: dict[str, Any] = {}
        if tokens is not None:
            row = tokens[int(record)]
            for name in row.column_names:
                values[name] = integers(row.column(name)[0], name, self.describe(record))
        if others is not None:
            try:
                values |= others[int(record)]
            except UnicodeDecodeError as error:
                raise DataError(f"{self.describe(record)} is not UTF-8 text", hint="save it as UTF-8") from error
        return {name: values[name] for name in columns}

    def _view(self, columns: tuple[str, ...]) -> tuple[Any, Any]:
        """The columns of integers, in Arrow's format, and the others; None where there are none."""
        require_columns(self, columns)
        tokens = [name for name in columns if _holds_integers(self.table.features[name])]
        others = [name for name in columns if name not in tokens]
        return (
            self.table.select_columns(tokens).with_format("arrow") if tokens else None,
            self.table.select_columns(others).with_format(None) if others else None,
        )

    def lengths(self, column: str) -> Lengths:
        """How many items every row has in a column of lists: int64, (rows,). Only borders of lists are read."""
        import pyarrow.compute as pc

        require_columns(self, [column])
        if not _holds_integers(self.table.features[column]):
            raise DataError(f"column {column!r} of {self.name} does not hold lists of token ids")
        found = [np.zeros(0, dtype=np.int64)]
        for batch in self.table.select_columns([column]).with_format("arrow").iter(batch_size=10_000):
            sizes = pc.fill_null(pc.list_value_length(batch.column(column)), 0)
            found.append(sizes.to_numpy().astype(np.int64))
        return np.concatenate(found)


def require_columns(records: Records, columns: Sequence[str]) -> None:
    """See that records have these columns.

    Raises:
        DataError: naming one that they lack, and the nearest.
    """
    for column in columns:
        if column not in records.column_names:
            near = get_close_matches(column, records.column_names, n=1)
            raise DataError(
                f"{records.name} has no column {column!r}; it has {', '.join(records.column_names) or 'none'}",
                hint=f"did you mean {near[0]!r}?" if near else None,
            )


def _holds_integers(feature: Any) -> bool:
    """Whether a column's type is a list of integers."""
    inner = getattr(feature, "feature", None)
    if isinstance(feature, list):  # releases of the library before 4 write List(x) as [x]
        inner = feature[0] if len(feature) == 1 else None
    return str(getattr(inner, "dtype", "")).startswith(("int", "uint"))


def integers(cell: Any, column: str, where: str) -> NDArray[np.integer]:
    """A cell of Arrow's as an array.

    Raises:
        DataError: it is null, or holds a null.
    """
    if not cell.is_valid or cell.values.null_count:
        raise DataError(f"{where}: {column!r} {'holds nulls' if cell.is_valid else 'is null'}, not token ids")
    values: NDArray[np.integer] = cell.values.to_numpy(zero_copy_only=False)
    return values
