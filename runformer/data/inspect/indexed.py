"""The documents of Megatron-LM's indexed datasets as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runformer.data.megatron import IndexedDataset
from runformer.data.megatron.layout import data_path, index_path
from runformer.data.records import Records

_COLUMN = "tokens"


class IndexedDocuments(Records):
    """One record a document: the tokens of all its sequences.

    Args:
        prefix: the path of both files, without their endings.

    Attributes:
        dataset: what is read.

    Raises:
        DataError: a file is not there, is damaged, or does not belong to the other.
    """

    def __init__(self, prefix: Path) -> None:
        self.name = str(prefix)
        self.dataset = IndexedDataset(prefix)

    @property
    def column_names(self) -> Sequence[str]:
        """As ``Records``."""
        return [_COLUMN]

    @property
    def paths(self) -> list[Path]:
        """Both files."""
        return [data_path(self.name), index_path(self.name)]

    def __len__(self) -> int:
        return max(0, len(self.dataset.documents) - 1)  # a file without sequences may lack even the end of the last one

    def describe(self, record: int) -> str:
        """As ``Records``."""
        return f"document {record} of {self.name}"

    def read_columns(self, record: int, columns: Sequence[str]) -> Mapping[str, Any]:
        """As ``Records``; the tokens have the dtype of the file."""
        sequences = self.dataset.documents[record : record + 2]
        begin, end = self._begins(int(sequences[0])), self._begins(int(sequences[1]))
        return dict.fromkeys(columns, self.dataset.tokens[begin:end])

    def _begins(self, sequence: int) -> int:
        """Where a sequence begins in all tokens, or the last one ends."""
        if sequence == len(self.dataset):
            return len(self.dataset.tokens)
        return int(self.dataset.begins(np.array([sequence]))[0])


def megatron_prefix(path: Path) -> Path | None:
    """The prefix that a path is, or whose ``.bin`` or ``.idx`` it is; None: it is none of them."""
    for prefix in (path, path.with_suffix("") if path.suffix in (".bin", ".idx") else path):
        if index_path(prefix).is_file():
            return prefix
    return path.with_suffix("") if path.suffix == ".idx" else None
