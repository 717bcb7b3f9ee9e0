"""Rows of token ids in MindRecord files, as batches that a causal language model learns from.

Shapes: B rows, T tokens in a stored row, L positions that the model sees (T = L + 1, or L where rows are already
shifted).
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np
import torch
from numpy.typing import NDArray

from runformer.config.task import DataOptions
from runformer.data import IGNORED
from runformer.data.batch import TokenBatch
from runformer.data.open import open_records
from runformer.data.records import Ids, Records, RowLengthError
from runformer.errors import ConfigError, DataError

__all__ = ["TokenBatch", "TokenDataset"]

Flags = NDArray[np.bool_]


class TokenDataset:
    """The samples of one dataset, with the meaning that MindFormers gives to its columns.

    The first column holds the tokens, a second one the labels (shifted along with the tokens); further ones have
    no effect. A position counts in the loss if its input token is not padding and, where there is a label column,
    its label is not ``ignore_token_id``; without one, a label that is padding counts.

    Args:
        options: the files, their columns and how to read them.
        sequence_length: L; None takes it from the first record.
        vocab_size: token ids are less than this.

    Raises:
        DataError: a file is not there or damaged, lacks a column, or holds no record; a data handler fails.
        ConfigError: rows are already shifted, but there is no column for their labels.
    """

    def __init__(self, options: DataOptions, sequence_length: int | None, vocab_size: int) -> None:
        if options.already_shifted and len(options.columns) < 2:
            message = "rows that are already shifted need a column of labels, but only tokens are read"
            raise ConfigError(message, hint=f"name it in {options.section}.input_columns, or unset input_sliced_sig")
        self._options = options
        self._vocab_size = vocab_size
        self._records = open_records(options)
        self._name = self._records.name
        if not options.handlers:  # which may add columns
            _check_columns(self._records, options)
        self._columns = options.columns[:2]
        if len(self) == 0:
            raise DataError(f"{self._name} holds no records")
        self._extra_tokens = 0 if options.already_shifted else 1
        self.sequence_length = self._first_length() if sequence_length is None else sequence_length

    def __len__(self) -> int:
        stored, used = len(self._records), self._options.num_samples
        return stored if used is None else min(stored, used)

    @property
    def name(self) -> str:
        """The files, for messages."""
        return self._name

    @property
    def section(self) -> str:
        """The section of the task file that names it, for messages."""
        return self._options.section

    def rows(self, samples: Sequence[int] | Ids) -> TokenBatch:
        """The batch of these samples (numbers from 0 in file order), in this order.

        Raises:
            DataError: a record is damaged, has another length, or holds an id outside the vocabulary.
        """
        columns_BT = self._read(samples)
        tokens_BT = columns_BT[0]
        self._check_ids(samples, self._columns[0], tokens_BT, np.ones_like(tokens_BT, dtype=bool))
        first = self._extra_tokens  # where labels begin in a row
        inputs_BL = tokens_BT[:, : self.sequence_length]
        labels_BL = columns_BT[-1][:, first:]
        keep_BL = self._is_not_padding(inputs_BL)
        counts_BL = keep_BL
        if len(columns_BT) > 1:
            counts_BL = keep_BL & (labels_BL != self._options.ignore_token_id)
            self._check_ids(samples, self._columns[1], labels_BL, counts_BL, first)
        labels_BL = np.where(counts_BL, labels_BL, IGNORED)
        inputs_BL = np.ascontiguousarray(inputs_BL)
        return TokenBatch.of(torch.from_numpy(inputs_BL), torch.from_numpy(labels_BL), torch.from_numpy(keep_BL))

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

    def _first_length(self) -> int:
        tokens = self._records.read_columns(0, self._columns[:1])[self._columns[0]]
        length = np.asarray(tokens).size - self._extra_tokens
        if length < 1:
            raise DataError(
                f"{self._records.describe(0)} is too short to learn from: {length + self._extra_tokens} tokens"
            )
        return length

    def _wrong_length(self, sample: int, column: str, size: int) -> DataError:
        length = self.sequence_length
        expected = f"{length + 1} (model.model_config.seq_length {length} + 1)" if self._extra_tokens else f"{length}"
        hint = f"set model.model_config.seq_length to {size - self._extra_tokens}, or preprocess the data for {length}"
        return DataError(f"{self._records.describe(sample)}: {column!r} has {size} tokens, not {expected}", hint=hint)

    def _check_ids(
        self, samples: Sequence[int] | Ids, column: str, ids: Ids, counts: Flags, first_position: int = 0
    ) -> None:
        wrong = counts & ((ids < 0) | (ids >= self._vocab_size))
        if not wrong.any():
            return
        row, place = (int(number) for number in np.argwhere(wrong)[0])
        where = f"{self._records.describe(int(samples[row]))}: {column!r}, position {place + first_position},"
        raise DataError(
            f"{where} holds token id {ids[row, place]}, but the vocabulary has ids 0 to {self._vocab_size - 1}",
            hint="the data was made with another tokenizer, or model.model_config.vocab_size is not the tokenizer's",
        )


def _check_columns(records: Records, options: DataOptions) -> None:
    for column in options.columns:
        if column not in records.column_names:
            nearest = get_close_matches(column, records.column_names, n=1, cutoff=0.0)[0]
            hint = f"did you mean {nearest!r}? {options.section}.input_columns names the columns to read"
            text = f"{records.name} has no column {column!r}; it has {', '.join(records.column_names)}"
            raise DataError(text, hint=hint)
    first = records.read_columns(0, options.columns[:2]) if len(records) else {}
    for column, values in first.items():
        tokens_T = np.asarray(values)
        if tokens_T.ndim != 1 or tokens_T.dtype.kind not in "iu":
            raise DataError(f"column {column!r} of {records.name} does not hold rows of int32 or int64 token ids")
