"""Megatron's samples as records of tokens and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runformer.config.task import MegatronFiles
from runformer.data import IGNORED
from runformer.data.megatron.samples import open_samples
from runformer.data.records import Ids, Records, RowLengthError

_COLUMNS = ("input_ids", "labels")


class MegatronRecords(Records):
    """The samples of one part of a blend: rows of ``sequence_length`` tokens with labels, the tokens that come next.

    Where the token or label is padding, the token is 0 and the label does not count.

    Raises:
        DataError: a file is not there or damaged, or holds not what is asked for.
    """

    def __init__(self, options: MegatronFiles) -> None:
        self.name = ", ".join(options.names)
        self._options = options
        self._samples = open_samples(options)

    @property
    def column_names(self) -> Sequence[str]:
        """As ``Records``."""
        return _COLUMNS

    def __len__(self) -> int:
        return len(self._samples)

    def describe(self, record: int) -> str:
        """As ``Records``."""
        return f"{self.name}, {self._options.part} sample {record}"

    def read_columns(self, record: int, columns: Sequence[str]) -> Mapping[str, Any]:
        """As ``Records``."""
        rows = self.read_rows([record], columns, self._options.sequence_length)
        return {name: row[0] for name, row in zip(columns, rows, strict=True)}

    def read_rows(self, records: Sequence[int] | Ids, columns: Sequence[str], length: int) -> list[Ids]:
        """As ``Records``."""
        if length != self._options.sequence_length:
            raise RowLengthError(int(records[0]), columns[0], self._options.sequence_length)
        tokens_BT = self._samples.read(np.asarray(records, dtype=np.int64))
        inputs_BL, next_BL = tokens_BT[:, :length], tokens_BT[:, 1:]
        if not self._options.extra_token:
            next_BL = np.pad(next_BL, ((0, 0), (0, 1)), constant_values=self._options.pad)
        pad = self._options.pad
        made = {
            "input_ids": np.where(inputs_BL == pad, 0, inputs_BL),
            "labels": np.where(next_BL == pad, IGNORED, next_BL),
        }
        return [made[name] for name in columns]
