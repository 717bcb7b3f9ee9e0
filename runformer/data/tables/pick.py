"""Methods of ``datasets.Dataset`` as data handlers: on a table as they are, and on records that were made of one.

Those that pick rows are asked of a table of row numbers, and those that pick or rename columns of a table that holds
the names of its columns. So they mean the same behind a handler as before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runformer.config.data_sources import MethodOptions
from runformer.data.records import Ids, Records
from runformer.data.tables.library import explaining, load_library
from runformer.data.tables.table import TableRecords, require_columns
from runformer.errors import DataError

ROWS = ("repeat", "select", "shard", "shuffle", "skip", "take")
COLUMNS = ("remove_columns", "rename_column", "rename_columns", "select_columns")


class PickedRecords(Records):
    """Some of other records, in an order of their own, perhaps several times.

    Args:
        records: the others.
        numbers: which of them.
    """

    def __init__(self, records: Records, numbers: Ids) -> None:
        self.records = records
        self.numbers = numbers
        self.name = records.name

    @property
    def column_names(self) -> Sequence[str]:
        """Those of the others."""
        return self.records.column_names

    def __len__(self) -> int:
        return len(self.numbers)

    def describe(self, record: int) -> str:
        """As the others do."""
        return self.records.describe(int(self.numbers[record]))

    def read_columns(self, record: int, columns: Sequence[str]) -> Mapping[str, Any]:
        """As ``Records``."""
        return self.records.read_columns(int(self.numbers[record]), columns)


class RenamedRecords(Records):
    """Other records with some of their columns, under other names.

    Args:
        records: the others.
        names: of each column, the name that it has there.
    """

    def __init__(self, records: Records, names: Mapping[str, str]) -> None:
        self._records = records
        self._names = names
        self.name = records.name

    @property
    def column_names(self) -> Sequence[str]:
        """The new ones."""
        return list(self._names)

    def __len__(self) -> int:
        return len(self._records)

    def describe(self, record: int) -> str:
        """As the others do."""
        return self._records.describe(record)

    def read_columns(self, record: int, columns: Sequence[str]) -> dict[str, Any]:
        """As ``Records``."""
        require_columns(self, columns)
        values = self._records.read_columns(record, [self._names[name] for name in columns])
        return {name: values[self._names[name]] for name in columns}


def apply_method(records: Records, method: MethodOptions, seed: int) -> Records:
    """What a method makes of records.

    ``seed`` is that of a shuffle that names none: the library would draw another one in every process.

    Raises:
        DataError: its arguments do not fit; or it needs a table, and stands behind a handler.
    """
    if method.name == "shuffle":
        method = MethodOptions(method.name, {"seed": seed, **method.arguments})
    if isinstance(records, TableRecords):
        return TableRecords(_call(records.table, method, records.name), records.name)
    library = load_library()
    if method.name in ROWS:
        table = library.Dataset.from_dict({"number": np.arange(len(records))})
        picked = _call(table, method, records.name).with_format("numpy")
        return PickedRecords(records, np.asarray(picked["number"][:], dtype=np.int64).reshape(-1))
    if method.name in COLUMNS:
        table = library.Dataset.from_dict({name: [name] for name in records.column_names})
        return RenamedRecords(records, _call(table, method, records.name)[0])
    raise DataError(
        f"{records.name}: {method.name!r} needs a table, and cannot follow a handler that makes tokens",
        hint="put it before that one",
    )


def _call(table: Any, method: MethodOptions, name: str) -> Any:
    with explaining(f"{name}: data handler {method.name!r}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the library's own business with Arrow
        return getattr(table, method.name)(**method.arguments)
