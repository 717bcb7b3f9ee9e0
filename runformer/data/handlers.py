"""Data handlers of plug-ins: what they make of a record before it becomes a row of tokens.

Shape: T tokens in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runformer.config.task import PluginOptions
from runformer.data.records import Records
from runformer.errors import ConfigError, DataError
from runformer.plugins.failures import blaming
from runformer.plugins.registry import find


class HandledRecords(Records):
    """The records of a dataset as data handlers, one after the other, leave them.

    The first one gets all columns, the next what that one gives. ``section`` of the task file
    is named in messages. ``of_tokens``: what the last one gives are rows of tokens; otherwise it may be anything.

    Raises:
        ConfigError: a handler cannot be made.
    """

    def __init__(
        self, records: Records, handlers: Sequence[PluginOptions], section: str, *, of_tokens: bool = True
    ) -> None:
        self._records = records
        self.name = records.name
        self._section = section
        self._of_tokens = of_tokens
        self._stored = records.column_names
        self._handlers = []
        for options in handlers:
            plugin = find("data_handler", options.kind)
            with blaming(plugin, ConfigError):
                self._handlers.append((plugin, plugin.target(**options.parameters)))

    @property
    def column_names(self) -> Sequence[str]:
        """Those of the first record: handlers may make any."""
        return list(self._handled(0))

    def __len__(self) -> int:
        return len(self._records)

    def describe(self, record: int) -> str:
        """Where a record lies and whose hands it went through, for messages."""
        names = ", ".join(plugin.name for plugin, _ in self._handlers)
        return f"{self._records.describe(record)}, as left by {names}"

    def read_columns(self, record: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns of one record, those of tokens (T,) each.

        Raises:
            DataError: the record is damaged, a handler fails, or gives something else.
        """
        row = self._handled(record)
        return {name: self._column(record, name, row) for name in columns}

    def _handled(self, record: int) -> Mapping[str, object]:
        row: object = self._records.read_columns(record, self._stored)
        for plugin, handler in self._handlers:
            where = self._records.describe(record)
            with blaming(plugin, DataError, where):
                row = handler(row)
            if not isinstance(row, Mapping):
                text = f"{where}: the {plugin} ({plugin.place}) gave an object of type {type(row).__name__}"
                raise DataError(text, hint="it gives a dictionary of columns, as it gets one")
        assert isinstance(row, Mapping)
        return row

    def _column(self, record: int, name: str, row: Mapping[str, object]) -> object:
        if name not in row:
            text = f"{self.describe(record)}: there is no column {name!r}, but {', '.join(map(str, row)) or 'none'}"
            raise DataError(text, hint=f"{self._section}.input_columns names the columns of the last handler's records")
        if not self._of_tokens:
            return row[name]
        values = np.asarray(row[name])
        if values.ndim != 1 or values.dtype.kind not in "iu":
            text = f"{self.describe(record)}: {name!r} is {values.dtype} {list(values.shape)}"
            raise DataError(text, hint="a handler gives 1-D arrays of integers")
        return values
