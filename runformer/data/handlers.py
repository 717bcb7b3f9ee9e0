"""Data handlers of plug-ins: what they make of a record before it becomes a row of tokens.

Shape: T tokens in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from runformer.config.task import PluginOptions
from runformer.data.mindrecord import MindRecordReader
from runformer.errors import ConfigError, DataError
from runformer.plugins.failures import blaming
from runformer.plugins.registry import find


class HandledReader:
    """The records of a dataset as data handlers, one after the other, leave them.

    The first one gets all columns of 1-D integer arrays, the next what that one gives. ``section`` of the task file
    is named in messages.

    Raises:
        ConfigError: a handler cannot be made.
    """

    def __init__(self, reader: MindRecordReader, handlers: Sequence[PluginOptions], section: str) -> None:
        self._reader = reader
        self._section = section
        self._stored = [
            name for name, column in reader.schema.items() if column.is_integer_array and len(column.shape or ()) == 1
        ]
        self._handlers = []
        for options in handlers:
            plugin = find("data_handler", options.kind)
            with blaming(plugin, ConfigError):
                self._handlers.append((plugin, plugin.target(**options.parameters)))

    def describe(self, record: int) -> str:
        """Where a record lies and whose hands it went through, for messages."""
        names = ", ".join(plugin.name for plugin, _ in self._handlers)
        return f"{self._reader.describe(record)}, as left by {names}"

    def read_columns(self, record: int, columns: Sequence[str]) -> dict[str, NDArray[np.integer]]:
        """Some columns of one record, (T,) each.

        Raises:
            DataError: the record is damaged, a handler fails, or gives something else.
        """
        row: object = self._reader.read_columns(record, self._stored)
        for plugin, handler in self._handlers:
            where = self._reader.describe(record)
            with blaming(plugin, DataError, where):
                row = handler(row)
            if not isinstance(row, Mapping):
                text = f"{where}: the {plugin} ({plugin.place}) gave an object of type {type(row).__name__}"
                raise DataError(text, hint="it gives a dictionary of columns, as it gets one")
        assert isinstance(row, Mapping)
        return {name: self._column(record, name, row) for name in columns}

    def _column(self, record: int, name: str, row: Mapping[str, object]) -> NDArray[np.integer]:
        if name not in row:
            text = f"{self.describe(record)}: there is no column {name!r}, but {', '.join(map(str, row)) or 'none'}"
            raise DataError(text, hint=f"{self._section}.input_columns names the columns of the last handler's records")
        values = np.asarray(row[name])
        if values.ndim != 1 or values.dtype.kind not in "iu":
            text = f"{self.describe(record)}: {name!r} is {values.dtype} {list(values.shape)}"
            raise DataError(text, hint="a handler gives 1-D arrays of integers")
        return values
