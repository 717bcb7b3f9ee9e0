"""Opening a dataset file of any kind, and finding the columns of tokens in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from runformer.data.inspect.indexed import IndexedDocuments, megatron_prefix
from runformer.data.open import open_mindrecord
from runformer.data.records import Records
from runformer.errors import DataError

_TOKENS = ("input_ids", "tokens")
_LABELS = ("labels", "target_ids")


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """The column of token ids, and the one of their labels (at the same positions) where there is one."""

    tokens: str
    labels: str | None

    @property
    def names(self) -> list[str]:
        """Both, or the one that there is."""
        return [self.tokens] if self.labels is None else [self.tokens, self.labels]


def open_dataset(path: Path) -> Records:
    """The records of a MindRecord file or of those in a folder, or the documents of a Megatron prefix.

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    if path.suffix == ".db" and path.with_suffix("").is_file():
        raise DataError(
            f"{path} is the index of a MindRecord file", hint=f"give the file itself: {path.with_suffix('')}"
        )
    prefix = megatron_prefix(path)
    return open_mindrecord([path]) if prefix is None else IndexedDocuments(prefix)


def token_columns(records: Records, wanted: Sequence[str] = ()) -> TokenColumns | None:
    """Which columns hold tokens and labels: those ``wanted``, else those with the usual names, else any row of ids.

    Raises:
        DataError: a column that is wanted is not there, or holds no rows of ids.
    """
    for name in wanted:
        if name not in records.column_names:
            nearest = get_close_matches(name, records.column_names, n=1, cutoff=0.0)[0]
            text = f"{records.name} has no column {name!r}; it has {', '.join(records.column_names)}"
            raise DataError(text, hint=f"did you mean {nearest!r}?")
    rows = _columns_of_ids(records)
    for name in wanted:
        if len(records) and name not in rows:
            raise DataError(f"column {name!r} of {records.name} does not hold rows of token ids")
    if wanted:
        return TokenColumns(wanted[0], wanted[1] if len(wanted) > 1 else None)
    tokens = next((name for name in (*_TOKENS, *rows) if name in rows and name not in _LABELS), None)
    if tokens is None:
        return None
    return TokenColumns(tokens, next((name for name in _LABELS if name in rows), None))


def _columns_of_ids(records: Records) -> list[str]:
    """The columns whose first value is a row of integers."""
    if len(records) == 0:
        return [name for name in (*_TOKENS, *_LABELS) if name in records.column_names]
    first = records.read_columns(0, list(records.column_names))
    arrays = ((name, value) for name, value in first.items() if isinstance(value, np.ndarray))
    return [name for name, value in arrays if value.ndim == 1 and value.dtype.kind in "iu"]
