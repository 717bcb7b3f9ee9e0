"""Rows of token ids in MindRecord files, as batches that a causal language model learns from.

Shapes: B rows, T tokens in a stored row, L positions that the model sees (T = L + 1, or L where rows are already
shifted).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from runformer.config.task import DataOptions
from runformer.data import IGNORED
from runformer.data.batch import TokenBatch
from runformer.data.handlers import HandledReader
from runformer.data.mindrecord import MindRecordReader
from runformer.data.mindrecord.schema import Schema
from runformer.errors import ConfigError, DataError

__all__ = ["TokenBatch", "TokenDataset"]

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


class TokenDataset:
    """The samples of one dataset, with the meaning that MindFormers gives to its columns.

    The first column holds the tokens, a second one the labels (shifted along with the tokens); further ones have
    no effect. A position counts in the loss if its input token is not padding and, where there is a label column,
    its label is not ``ignore_token_id``; without one, a label that is padding counts.

    Args:
        options: the files, their columns and how to read them. A folder stands for all files in it whose names
            end in ``mindrecord`` and a number or none.
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
        reader = _open(options.paths)
        self._stored = len(reader)
        self._name = ", ".join(map(str, options.paths))
        if not options.handlers:  # which may add columns
            _check_columns(reader.schema, options, self._name)
        self._reader = HandledReader(reader, options.handlers, options.section) if options.handlers else reader
        self._columns = options.columns[:2]
        if len(self) == 0:
            raise DataError(f"{self._name} holds no records")
        self._extra_tokens = 0 if options.already_shifted else 1
        self.sequence_length = self._first_length() if sequence_length is None else sequence_length

    def __len__(self) -> int:
        return self._stored if self._options.num_samples is None else min(self._stored, self._options.num_samples)

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

    def _read(self, samples: Iterable[int]) -> list[Ids]:
        """One (B, T) array a column."""
        length = self.sequence_length + self._extra_tokens
        rows_BC: list[list[Ids]] = []
        for sample in samples:
            record = self._reader.read_columns(int(sample), self._columns)
            row = [np.asarray(record[name]) for name in self._columns]
            for name, values in zip(self._columns, row, strict=True):
                if values.shape != (length,):
                    raise self._wrong_length(int(sample), name, values.size)
            rows_BC.append(row)
        return [np.stack(column).astype(np.int64) for column in zip(*rows_BC, strict=True)]

    def _first_length(self) -> int:
        tokens = self._reader.read_columns(0, self._columns[:1])[self._columns[0]]
        length = np.asarray(tokens).size - self._extra_tokens
        if length < 1:
            raise DataError(
                f"{self._reader.describe(0)} is too short to learn from: {length + self._extra_tokens} tokens"
            )
        return length

    def _wrong_length(self, sample: int, column: str, size: int) -> DataError:
        length = self.sequence_length
        expected = f"{length + 1} (model.model_config.seq_length {length} + 1)" if self._extra_tokens else f"{length}"
        hint = f"set model.model_config.seq_length to {size - self._extra_tokens}, or preprocess the data for {length}"
        return DataError(f"{self._reader.describe(sample)}: {column!r} has {size} tokens, not {expected}", hint=hint)

    def _check_ids(
        self, samples: Sequence[int] | Ids, column: str, ids: Ids, counts: Flags, first_position: int = 0
    ) -> None:
        wrong = counts & ((ids < 0) | (ids >= self._vocab_size))
        if not wrong.any():
            return
        row, place = (int(number) for number in np.argwhere(wrong)[0])
        where = f"{self._reader.describe(int(samples[row]))}: {column!r}, position {place + first_position},"
        raise DataError(
            f"{where} holds token id {ids[row, place]}, but the vocabulary has ids 0 to {self._vocab_size - 1}",
            hint="the data was made with another tokenizer, or model.model_config.vocab_size is not the tokenizer's",
        )


_MINDRECORD_NAME = re.compile(r"mindrecord\d*$")


def _open(paths: Sequence[Path]) -> MindRecordReader:
    """One file brings its shards along; several files, or those of a folder, are just these."""
    if len(paths) == 1 and not paths[0].is_dir():
        return MindRecordReader(paths[0])
    files: list[Path] = []
    for path in paths:
        found = (
            sorted(file for file in path.rglob("*") if _MINDRECORD_NAME.search(file.name)) if path.is_dir() else [path]
        )
        if not found:
            raise DataError(f"{path} holds no file whose name ends in 'mindrecord' (and a number)")
        files += found
    return MindRecordReader(files)


def _check_columns(schema: Schema, options: DataOptions, name: str) -> None:
    for column in options.columns:
        if column not in schema:
            nearest = get_close_matches(column, schema, n=1, cutoff=0.0)[0]
            hint = f"did you mean {nearest!r}? {options.section}.input_columns names the columns to read"
            raise DataError(f"{name} has no column {column!r}; it has {', '.join(schema)}", hint=hint)
    for column in options.columns[:2]:
        if not (schema[column].is_integer_array and len(schema[column].shape or ()) == 1):
            raise DataError(f"column {column!r} of {name} does not hold rows of int32 or int64 token ids")
