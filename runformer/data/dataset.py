"""Rows of token ids from any source, as batches that a causal language model learns from.

Shapes: B rows, T tokens in a stored row, L positions that the model sees (T = L + 1, or L where rows are already
shifted).
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np
import torch
from numpy.typing import NDArray

from runformer.config.data_sources import TableFiles
from runformer.config.task import DataOptions, DocumentOptions
from runformer.data import IGNORED
from runformer.data.batch import TokenBatch
from runformer.data.documents import ends_at, ends_of, places_in
from runformer.data.open import open_records
from runformer.data.records import Ids, Records, RowLengthError
from runformer.errors import ConfigError, DataError

__all__ = ["TokenBatch", "TokenDataset"]

Flags = NDArray[np.bool_]

ENDS = "actual_seq_len"
"""The column that says where documents end in a row, as MindFormers calls it."""


class TokenDataset:
    """The samples of one dataset, with the meaning that MindFormers gives to its columns.

    The first column holds the tokens, a second one the labels (shifted along with the tokens); of further ones only
    ``actual_seq_len`` has an effect: a row's documents end there. A position counts in the loss if its input token is
    not padding and, where there is a label column, its label is not ``ignore_token_id``; without one, a label that is
    padding counts.

    Args:
        options: the files, their columns and how to read them.
        sequence_length: L; None takes it from the first record.
        vocab_size: token ids are less than this.

    Raises:
        DataError: a file is not there or damaged, lacks a column, or holds no record; a data handler fails.
        ConfigError: rows are already shifted, but there is no column for their labels; or they are padded to a length
            that is not known.
    """

    def __init__(self, options: DataOptions, sequence_length: int | None, vocab_size: int) -> None:
        if options.already_shifted and len(options.columns) < 2:
            message = "rows that are already shifted need a column of labels, but only tokens are read"
            raise ConfigError(message, hint=f"name it in {options.section}.input_columns, or unset input_sliced_sig")
        if options.padding is not None and sequence_length is None:
            message = f"{options.section}.dynamic_batch: how long a row may be is not known"
            raise ConfigError(message, hint="set model.model_config.seq_length")
        self._options = options
        self._vocab_size = vocab_size
        self._records = open_records(options)
        if not options.handlers:  # which may add columns
            _check_columns(self._records, options)
        self._columns = tuple(name for name in options.columns if name != ENDS)[:2]
        self._has_ends = ENDS in options.columns
        self._documents = options.documents or (DocumentOptions() if self._has_ends else None)
        if len(self) == 0:
            raise DataError(f"{self.name} holds no records")
        self._extra_tokens = 0 if options.already_shifted else 1
        self.sequence_length = self._first_length() if sequence_length is None else sequence_length

    def __len__(self) -> int:
        stored, used = len(self._records), self._options.num_samples
        return stored if used is None else min(stored, used)

    @property
    def name(self) -> str:
        """The files, for messages."""
        return self._records.name

    @property
    def section(self) -> str:
        """The section of the task file that names it, for messages."""
        return self._options.section

    def rows(self, samples: Sequence[int] | Ids) -> TokenBatch:
        """The batch of these samples (numbers from 0 in file order), in this order.

        Raises:
            DataError: a record is damaged, has another length, or holds an id outside the vocabulary.
        """
        columns_BT = self._read(samples) if self._options.padding is None else self._read_padded(samples)
        tokens_BT = columns_BT[0]
        length, first = tokens_BT.shape[1] - self._extra_tokens, self._extra_tokens  # where labels begin in a row
        self._check_ids(samples, self._columns[0], tokens_BT)
        inputs_BL, labels_BL = tokens_BT[:, :length], columns_BT[-1][:, first:]
        if len(columns_BT) > 1 and self._options.ignore_token_id != IGNORED:
            labels_BL[labels_BL == self._options.ignore_token_id] = IGNORED
        keep_BL = self._is_not_padding(inputs_BL)
        is_full = bool(keep_BL.all())
        if len(columns_BT) == 1 and (self._documents is not None or not is_full):
            labels_BL = labels_BL.copy()  # else they are the very numbers that are read as tokens
        if not is_full:
            labels_BL[~keep_BL] = IGNORED
        if len(columns_BT) > 1:
            self._check_ids(samples, self._columns[-1], labels_BL, first, labels=True)
        return self._batch(samples, inputs_BL, labels_BL, keep_BL)

    def _batch(self, samples: Sequence[int] | Ids, inputs_BL: Ids, labels_BL: Ids, keep_BL: Flags) -> TokenBatch:
        documents = self._documents
        numbers = positions = None
        if documents is not None:
            ends_BL = self._ends(samples, inputs_BL)
            self._ignore_next_documents(labels_BL, ends_BL)
            numbers_BL, positions_BL = places_in(ends_BL)
            numbers = torch.from_numpy(numbers_BL) if documents.attention else None
            positions = torch.from_numpy(positions_BL) if documents.positions else None
        inputs, labels, keep = torch.from_numpy(inputs_BL), torch.from_numpy(labels_BL), torch.from_numpy(keep_BL)
        return TokenBatch.of(inputs, labels, keep, numbers, positions)

    def _ignore_next_documents(self, labels_BL: Ids, ends_BL: Flags) -> None:
        """Let the end of a document count only where an end token, from which the next one is learnt, may count."""
        assert self._documents is not None
        if self._documents.eod is not None and self._documents.eod_counts:
            return
        ends_BL = ends_BL.copy()
        if self._documents.eod is None and self._options.already_shifted:
            ends_BL[:, -1] = False  # its label is of the same document
        labels_BL[ends_BL] = IGNORED

    def _ends(self, samples: Sequence[int] | Ids, inputs_BL: Ids) -> Flags:
        """Behind which positions a document ends."""
        assert self._documents is not None
        if self._documents.eod is not None:
            return ends_at(inputs_BL, self._documents.eod)
        length = inputs_BL.shape[1]
        rows = []
        for sample in map(int, samples):
            ends = (
                np.asarray(self._records.read_columns(sample, [ENDS])[ENDS]) if self._has_ends else np.array([length])
            )
            try:
                rows.append(ends_of(ends, length, length + self._extra_tokens))
            except ValueError as error:
                raise DataError(f"{self._records.describe(sample)}: {ENDS!r} {error}", hint=_ENDS_HINT) from error
        return np.stack(rows)

    def _is_not_padding(self, inputs_BL: Ids) -> Flags:
        if self._options.pad_token_id is None:
            return np.ones_like(inputs_BL, dtype=bool)
        keep_BL: Flags = inputs_BL != self._options.pad_token_id
        return keep_BL

    def _read(self, samples: Sequence[int] | Ids) -> list[Ids]:
        """One (B, T) array a column."""
        try:
            return self._records.read_rows(samples, self._columns, self.sequence_length + self._extra_tokens)
        except RowLengthError as error:
            raise self._wrong_length(error.record, error.column, error.size) from error

    def _read_padded(self, samples: Sequence[int] | Ids) -> list[Ids]:
        """The same with T of the longest row, rounded up; shorter rows are filled with padding that counts nowhere."""
        records = [self._records.read_columns(int(sample), self._columns) for sample in samples]
        rows_CB = [[np.asarray(record[name]) for record in records] for name in self._columns]
        most = self.sequence_length + self._extra_tokens
        for name, rows in zip(self._columns, rows_CB, strict=True):
            for sample, row, tokens in zip(samples, rows, rows_CB[0], strict=True):
                if not 1 + self._extra_tokens <= row.size <= most or row.size != tokens.size:
                    raise self._wrong_length(int(sample), name, row.size, tokens.size)
        length = min(self._rounded(max(row.size for row in rows_CB[0])), most)
        pad = self._options.pad_token_id or 0
        fills = [pad, self._options.ignore_token_id]
        columns = [_filled(rows, length, fill) for rows, fill in zip(rows_CB, fills, strict=False)]
        if len(columns) == 1:  # padding that is a token of its own still counts nowhere
            columns.append(_filled(rows_CB[0], length, self._options.ignore_token_id))
        return columns

    def _rounded(self, size: int) -> int:
        """The least multiple of ``divisor``, plus ``remainder``, that is not less than ``size``."""
        padding = self._options.padding
        assert padding is not None
        return -(-(size - padding.remainder) // padding.divisor) * padding.divisor + padding.remainder

    def _first_length(self) -> int:
        tokens = self._records.read_columns(0, self._columns[:1])[self._columns[0]]
        length = np.asarray(tokens).size - self._extra_tokens
        if length < 1:
            raise DataError(
                f"{self._records.describe(0)} is too short to learn from: {length + self._extra_tokens} tokens"
            )
        return length

    def _wrong_length(self, sample: int, column: str, size: int, tokens: int | None = None) -> DataError:
        where, most = f"{self._records.describe(sample)}: {column!r} has {size} tokens", self.sequence_length
        if tokens is not None and size != tokens:
            return DataError(f"{where}, but {self._columns[0]!r} has {tokens}", hint="make the data anew")
        expected = f"{most + 1} (model.model_config.seq_length {most} + 1)" if self._extra_tokens else f"{most}"
        if self._options.padding is not None:
            expected = f"{1 + self._extra_tokens} to {expected}"
        hint = f"set model.model_config.seq_length to {size - self._extra_tokens}, or preprocess the data for {most}"
        return DataError(f"{where}, not {expected}", hint=hint)

    def _check_ids(
        self, samples: Sequence[int] | Ids, column: str, ids: Ids, first_position: int = 0, *, labels: bool = False
    ) -> None:
        """See that ids are in the vocabulary; as unsigned numbers negative ones are too large as well."""
        wrong = ids.view(np.uint64) >= self._vocab_size
        if not wrong.any():
            return
        if labels:
            wrong &= ids != IGNORED
            if not wrong.any():
                return
        row, place = (int(number) for number in np.argwhere(wrong)[0])
        where = f"{self._records.describe(int(samples[row]))}: {column!r}, position {place + first_position},"
        raise DataError(
            f"{where} holds token id {ids[row, place]}, but the vocabulary has ids 0 to {self._vocab_size - 1}",
            hint="the data was made with another tokenizer, or model.model_config.vocab_size is not the tokenizer's",
        )


_ENDS_HINT = "it holds where each document of the row ends: growing numbers, the last one the row's length"


def _filled(rows: Sequence[NDArray[np.integer]], length: int, fill: int) -> Ids:
    filled_BT = np.full((len(rows), length), fill, dtype=np.int64)
    for target_T, row in zip(filled_BT, rows, strict=True):
        target_T[: row.size] = row
    return filled_BT


def _check_columns(records: Records, options: DataOptions) -> None:
    for column in options.columns:
        if column not in records.column_names:
            nearest = get_close_matches(column, records.column_names, n=1, cutoff=0.0)[0]
            hint = f"did you mean {nearest!r}? {options.section}.input_columns names the columns to read"
            if isinstance(options.source, TableFiles) and not options.source.handlers:
                hint = (
                    "data handlers make tokens of text: MessagesDataHandler, AlpacaInstructDataHandler, TextDataHandler"
                )
            text = f"{records.name} has no column {column!r}; it has {', '.join(records.column_names)}"
            raise DataError(text, hint=hint)
    first = records.read_columns(0, options.columns[:2]) if len(records) else {}
    for column, values in first.items():
        tokens_T = np.asarray(values)
        if tokens_T.ndim != 1 or tokens_T.dtype.kind not in "iu":
            raise DataError(f"column {column!r} of {records.name} does not hold rows of int32 or int64 token ids")
