"""What all sources of samples have in common: numbered records of named columns.

Shapes: B records of a batch, T tokens in a record.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class RowLengthError(ValueError):
    """A record's column has ``size`` tokens, where another number was asked for."""

    def __init__(self, record: int, column: str, size: int) -> None:
        super().__init__(f"record {record} has {size} tokens in {column!r}")
        self.record, self.column, self.size = record, column, size


class Records(ABC):
    """Records that can be read in any order, from several threads at once.

    Attributes:
        name: the files, for messages.
    """

    name: str

    @property
    @abstractmethod
    def column_names(self) -> Sequence[str]:
        """The columns that ``read_columns`` knows."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def describe(self, record: int) -> str:
        """Where a record lies, for messages."""

    @abstractmethod
    def read_columns(self, record: int, columns: Sequence[str]) -> Mapping[str, Any]:
        """Some columns of one record; those of tokens are 1-D arrays of integers.

        Raises:
            DataError: the record is damaged, or is not what it should be.
        """

    def read_rows(self, records: Sequence[int] | Ids, columns: Sequence[str], length: int) -> list[Ids]:
        """Some columns of several records of ``length`` tokens: one (B, length) array a column.

        Raises:
            RowLengthError: a column has another number of tokens.
            DataError: as ``read_columns``.
        """
        rows_CBT = [np.empty((len(records), length), dtype=np.int64) for _ in columns]
        for row, record in enumerate(map(int, records)):
            values = self.read_columns(record, columns)
            for name, rows_BT in zip(columns, rows_CBT, strict=True):
                tokens_T = np.asarray(values[name])
                if tokens_T.shape != (length,):
                    raise RowLengthError(record, name, tokens_T.size)
                rows_BT[row] = tokens_T
        return rows_CBT
