"""Samples → rows of as many tokens as a model reads at once: padded, packed, or cut from one stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from runformer.data import IGNORED
from runformer.data.packing import best_fit
from runformer.data.prepare.encode import Samples, Tokens

_WINDOW = 1 << 22  # tokens that are packed at a time

Row = dict[str, Tokens]
Document = tuple[Tokens, Tokens]
"""Tokens and labels of a sample, both int32 of one length."""


@dataclass
class RowCounts:
    """Tokens in rows. ``documents`` counts samples; ``tail`` the tokens that filled no row and were left out."""

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    padding: int = 0
    tail: int = 0


def documents(chunks: Iterable[Samples]) -> Iterator[Document]:
    """The samples of the chunks, one by one."""
    for chunk in chunks:
        labels = np.where(chunk.learnt, chunk.tokens, np.int32(IGNORED)).astype(np.int32)
        end = 0
        for length in chunk.lengths.tolist():
            begin, end = end, end + length
            yield chunk.tokens[begin:end], labels[begin:end]


def padded_rows(
    chunks: Iterable[Samples], length: int, pad: int, label_column: str, counts: RowCounts
) -> Iterator[Row]:
    """A row a sample; ``target_ids`` as the column of labels brings an ``attention_mask``."""
    for tokens, labels in documents(chunks):
        row = {"input_ids": _filled(tokens, length, pad), label_column: _filled(labels, length, IGNORED)}
        if label_column == "target_ids":
            row["attention_mask"] = _filled(np.ones_like(tokens), length, 0)
        _count(counts, 1, len(tokens), length)
        yield row


def packed_rows(
    chunks: Iterable[Samples], length: int, pad: int, label_column: str, counts: RowCounts
) -> Iterator[Row]:
    """Rows of several samples each, best-fit decreasing within windows of the samples.

    ``actual_seq_len`` holds where each sample of a row ends; padding is a sample of its own. The first token of a
    sample is no label: it is not to be predicted from the sample before.
    """
    stream = documents(chunks)
    while window := _window(stream):
        for numbers in best_fit([len(tokens) for tokens, _ in window], length):
            parts = [window[number] for number in numbers]
            tokens = np.concatenate([part for part, _ in parts])
            ends = np.cumsum([len(part) for part, _ in parts], dtype=np.int32)
            labels = np.concatenate([part for _, part in parts])
            labels[np.concatenate(([0], ends[:-1]))] = IGNORED
            _count(counts, len(parts), len(tokens), length)
            yield {
                "input_ids": _filled(tokens, length, pad),
                label_column: _filled(labels, length, IGNORED),
                "actual_seq_len": ends if len(tokens) == length else np.append(ends, np.int32(length)),
            }


def _window(stream: Iterator[Document]) -> list[Document]:
    window: list[Document] = []
    size = 0
    while size < _WINDOW and (document := next(stream, None)) is not None:
        window.append(document)
        size += len(document[0])
    return window


def stream_rows(
    chunks: Iterable[Samples], length: int, pad: int, pad_last_row: bool, counts: RowCounts
) -> Iterator[Row]:
    """All tokens in one stream, cut into rows; what is left at the end is padded or left out."""
    rest = np.empty(0, dtype=np.int32)
    for chunk in chunks:
        counts.documents += len(chunk.lengths)
        stream = np.concatenate([rest, chunk.tokens])
        whole = len(stream) // length * length
        for row in stream[:whole].reshape(-1, length):
            _count(counts, 0, length, length)
            yield {"input_ids": row}
        rest = stream[whole:]
    if len(rest) and pad_last_row:
        _count(counts, 0, len(rest), length)
        yield {"input_ids": _filled(rest, length, pad)}
    else:
        counts.tail = len(rest)


def _filled(values: Tokens, length: int, filler: int) -> Tokens:
    row: NDArray[np.int32] = np.full(length, filler, dtype=np.int32)
    row[: len(values)] = values
    return row


def _count(counts: RowCounts, documents: int, tokens: int, length: int) -> None:
    counts.rows += 1
    counts.documents += documents
    counts.tokens += tokens
    counts.padding += length - tokens


def batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """The rows in lists of ``size``."""
    while batch := list(islice(rows, size)):
        yield batch
