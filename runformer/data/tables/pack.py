"""Several documents in a row, with the borders between them.

Shapes: T tokens in a row, D documents in it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runformer.config.data_sources import PackOptions
from runformer.data import IGNORED
from runformer.data.packing import best_fit
from runformer.data.records import Ids, Records
from runformer.data.tables.lengths import document_lengths
from runformer.data.tables.table import require_columns
from runformer.errors import DataError

logger = logging.getLogger(__name__)

COLUMNS = ("input_ids", "labels", "actual_seq_len")


def pack(records: Records, options: PackOptions, pad_token_id: int) -> PackedRecords:
    """Rows of documents. How long those are has to be known before; what they hold is read with a row.

    Raises:
        DataError: no document fits into a row.
    """
    require_columns(records, ["input_ids"])
    lengths = document_lengths(records)
    rows = _whole_documents if options.strategy == "pack" else _cut_documents
    return rows(records, lengths, options, pad_token_id)


class PackedRecords(Records):
    """Rows of T tokens, made of pieces of documents.

    ``input_ids`` and ``labels`` are (T,), ``actual_seq_len`` (D,) or (D + 1,): where each document ends, and, if the
    row is filled up, where that ends. What a document begins with cannot be foretold from the one before: its first
    label is -100.

    Args:
        records: the documents.
        documents: the number of each piece's document.
        begins: where each piece begins in its document.
        sizes: how many tokens each piece has.
        first_pieces: the number of each row's first piece, and behind that how many pieces there are.
        length: T.
        pad_token_id: fills rows.
    """

    def __init__(
        self,
        records: Records,
        documents: Ids,
        begins: Ids,
        sizes: Ids,
        first_pieces: Ids,
        length: int,
        pad_token_id: int,
    ) -> None:
        self._records = records
        self.name = records.name
        self._documents, self._begins, self._sizes, self._first_pieces = documents, begins, sizes, first_pieces
        self._length = length
        self._pad = pad_token_id
        self._has_labels = "labels" in records.column_names
        self._last: tuple[int, Ids, Ids] | None = None  # a document that is cut into rows is read once

    @property
    def column_names(self) -> Sequence[str]:
        """Tokens, labels and borders."""
        return COLUMNS

    def __len__(self) -> int:
        return len(self._first_pieces) - 1

    def describe(self, record: int) -> str:
        """Its first document, and how many follow."""
        pieces = self._pieces(record)
        first = self._records.describe(int(self._documents[pieces.start]))
        more = pieces.stop - pieces.start - 1
        return f"packed row {record} ({first}{f' and {more} more' if more else ''})"

    def read_columns(self, record: int, columns: Sequence[str]) -> dict[str, Ids]:
        """As ``Records``.

        Raises:
            DataError: also if a document is not as long as it was.
        """
        require_columns(self, columns)
        pieces = self._pieces(record)
        tokens_T = np.full(self._length, self._pad, dtype=np.int64)
        labels_T = np.full(self._length, IGNORED, dtype=np.int64)
        ends = np.cumsum(self._sizes[pieces], dtype=np.int64)
        for piece, end in zip(range(pieces.start, pieces.stop), ends.tolist(), strict=True):
            tokens, labels = self._piece(piece)
            tokens_T[end - len(tokens) : end] = tokens
            labels_T[end - len(tokens) : end] = labels
        if ends[-1] < self._length:
            ends = np.append(ends, self._length)
        values = {"input_ids": tokens_T, "labels": labels_T, "actual_seq_len": ends}
        return {name: values[name] for name in columns}

    def _pieces(self, record: int) -> slice:
        return slice(int(self._first_pieces[record]), int(self._first_pieces[record + 1]))

    def _piece(self, piece: int) -> tuple[Ids, Ids]:
        document, begin, size = (int(of[piece]) for of in (self._documents, self._begins, self._sizes))
        tokens, labels = self._document(document)
        stretch = slice(begin, begin + size)
        if len(tokens[stretch]) != size:
            where = self._records.describe(document)
            raise DataError(
                f"{where} has {len(tokens)} tokens, and had more when rows were packed",
                hint="the data or its handlers have changed meanwhile: start again",
            )
        return tokens[stretch], labels[stretch]

    def _document(self, document: int) -> tuple[Ids, Ids]:
        last = self._last
        if last is None or last[0] != document:
            columns = ("input_ids", "labels")[: 1 + self._has_labels]
            values = self._records.read_columns(document, columns)
            tokens = np.asarray(values["input_ids"])
            labels = np.array(values["labels"] if self._has_labels else tokens, dtype=np.int64)
            if labels.shape != tokens.shape:
                where = self._records.describe(document)
                raise DataError(f"{where} has {tokens.size} tokens, and {labels.size} labels")
            labels[:1] = IGNORED
            last = self._last = (document, tokens, labels)
        return last[1], last[2]


def _whole_documents(
    records: Records, lengths: NDArray[np.int64], options: PackOptions, pad_token_id: int
) -> PackedRecords:
    fitting = np.flatnonzero((lengths >= 1) & (lengths <= options.length))
    _tell(records, lengths, options.length)
    rows = best_fit(lengths[fitting], options.length)
    documents = fitting[np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=len(fitting))]
    borders = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    begins = np.zeros_like(documents)
    return PackedRecords(records, documents, begins, lengths[documents], borders, options.length, pad_token_id)


def _tell(records: Records, lengths: NDArray[np.int64], length: int) -> None:
    long, empty = int((lengths > length).sum()), int((lengths < 1).sum())
    if long + empty == len(lengths):
        hint = "use pack_strategy: truncate, or a larger seq_length"
        raise DataError(f"{records.name}: none of {len(lengths)} records has 1 to {length} tokens", hint=hint)
    if long:
        logger.warning(
            "%s: %d of %d records have more than %d tokens and are left out", records.name, long, len(lengths), length
        )
    if empty:
        logger.warning("%s: %d of %d records have no tokens and are left out", records.name, empty, len(lengths))


def _cut_documents(
    records: Records, lengths: NDArray[np.int64], options: PackOptions, pad_token_id: int
) -> PackedRecords:
    """The documents behind each other, cut wherever a document or a row ends."""
    document_ends: Any = np.cumsum(lengths)
    total = int(document_ends[-1]) if len(document_ends) else 0
    if total == 0:
        raise DataError(f"{records.name} holds no tokens")
    row_ends = np.arange(options.length, total + options.length, options.length)
    ends = np.union1d(document_ends[document_ends > 0], np.minimum(row_ends, total))
    starts = np.concatenate([[0], ends[:-1]])
    documents = np.searchsorted(document_ends, starts, side="right")
    begins = starts - (document_ends - lengths)[documents]
    first_pieces = np.append(np.searchsorted(starts, row_ends - options.length), len(starts))
    return PackedRecords(records, documents, begins, ends - starts, first_pieces, options.length, pad_token_id)
