"""Counting over all records of a dataset: tokens, lengths, ids. Memory does not grow with the number of records.

Shapes: B records of a batch, T tokens of a row, N tokens of all rows of a batch, one after another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runformer.data import IGNORED
from runformer.data.inspect.files import TokenColumns
from runformer.data.inspect.indexed import IndexedDocuments
from runformer.data.packing import count_rows
from runformer.data.records import Ids, Records, RowLengthError
from runformer.errors import DataError

_BATCH_TOKENS = 1 << 20  # what is read and counted at once
_BATCH_RECORDS = 1 << 14
_MOST_IDS = 1 << 24  # smaller ids are told apart by one byte each; no vocabulary is larger
_PADDING_RUN = 4  # so many equal tokens at the end of a record are taken for padding
_LOOKED_AT = 1000  # records in which padding is looked for
_AGREE = 0.75  # so many of those with such an end have the same


@dataclass(slots=True)
class Figures:
    """What was counted. Lengths are tokens without the padding at the end of a record.

    Attributes:
        lengths: length → how many records have it.
        stored: tokens with padding.
        counted: positions that count in the loss, as ``TokenDataset`` counts them.
        row_length: tokens of a row in training; None: not known, as records differ and nobody said.
        pad_token_id: None: nothing is taken for padding.
        largest, smallest: of all ids, labels not among them; None: there is no token.
        runs_on: samples are cut from all records one after the other, as Megatron-LM does, and have no padding.
        beyond: tokens whose id is 2**24 or more, which are not among ``distinct``.
    """

    records: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    stored_lengths: Counter[int] = field(default_factory=Counter)
    stored: int = 0
    counted: int = 0
    row_length: int | None = None
    pad_token_id: int | None = None
    pad_guessed: bool = False
    runs_on: bool = False
    smallest: int | None = None
    largest: int | None = None
    distinct: int = 0
    negative: int = 0
    beyond: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that are no padding."""
        return sum(length * count for length, count in self.lengths.items())

    @property
    def empty(self) -> int:
        """Records without a token."""
        return self.lengths[0]

    @property
    def too_long(self) -> int:
        """Records with more tokens than a row."""
        row = self.row_length
        return 0 if row is None else sum(count for length, count in self.lengths.items() if length > row)

    @property
    def padding(self) -> float:
        """Which part of what training reads is padding: 0 to 1."""
        packing = self.packing()
        if self.runs_on or not self.stored:
            return 0.0
        return 1 - (self.tokens / self.stored if packing is None else packing.efficiency_before)

    def quantile(self, part: float) -> int:
        """The length that ``part`` of the records do not exceed; 0 where there is no record."""
        wanted, seen = part * self.records, 0
        for length in sorted(self.lengths):
            seen += self.lengths[length]
            if seen >= wanted:
                return length
        return 0

    def packing(self) -> Packing | None:
        """What packing would save; None where the length of a row is not known, or there is no token."""
        row = self.row_length
        if row is None or not self.tokens:
            return None
        cut: Counter[int] = Counter()
        for length, count in self.lengths.items():
            if length:
                cut[min(length, row)] += count
        return Packing(row, self.records, count_rows(cut, row), sum(size * count for size, count in cut.items()))


@dataclass(frozen=True, slots=True)
class Packing:
    """Rows of ``row_length`` tokens, one a record, or best-fit packed; ``tokens`` of them are no padding."""

    row_length: int
    rows_before: int
    rows_after: int
    tokens: int

    @property
    def efficiency_before(self) -> float:
        """Which part of the tokens is no padding: 0 to 1."""
        return self.tokens / (self.rows_before * self.row_length)

    @property
    def efficiency_after(self) -> float:
        """Likewise when packed."""
        return self.tokens / (self.rows_after * self.row_length)


def count(
    records: Records,
    columns: TokenColumns,
    *,
    sequence_length: int | None = None,
    pad_token_id: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Figures:
    """Read all records and count.

    Args:
        records: the dataset.
        columns: where its tokens and labels are.
        sequence_length: positions that the model sees; a row has one token more. None: a row is as long as the
            records, where they are all alike.
        pad_token_id: what is no token at the end of a record. None: guessed from the first records.
        advance: called with the number of records of each batch that was counted.

    Raises:
        DataError: a record is damaged, or has not as many labels as tokens.
    """
    figures = Figures(pad_token_id=pad_token_id, runs_on=isinstance(records, IndexedDocuments))
    if pad_token_id is None and not figures.runs_on:
        figures.pad_token_id = _guess_padding(records, columns.tokens)
        figures.pad_guessed = figures.pad_token_id is not None
    seen = np.zeros(0, dtype=bool)
    for sizes_B, (tokens_N, *labels) in _batches(records, columns):
        _count_lengths(figures, sizes_B, tokens_N, labels[0] if labels else None)
        seen = _mark(figures, seen, tokens_N)
        advance(len(sizes_B))
    figures.distinct = int(seen.sum())
    if sequence_length is not None:
        figures.row_length = sequence_length + 1
    elif len(figures.stored_lengths) == 1:
        figures.row_length = next(iter(figures.stored_lengths)) or None
    return figures


def _guess_padding(records: Records, column: str) -> int | None:
    """The id that ends most of the records that end with a run of one id."""
    ends: Counter[int] = Counter()
    for record in range(min(len(records), _LOOKED_AT)):
        tokens_T = records.read_columns(record, [column])[column]
        same_T = tokens_T == tokens_T[-1:]
        if same_T[-_PADDING_RUN:].sum() == _PADDING_RUN and not same_T.all():
            ends[int(tokens_T[-1])] += 1
    for token, times in ends.most_common(1):
        if times >= _AGREE * ends.total():
            return token
    return None


def _count_lengths(figures: Figures, sizes_B: Ids, tokens_N: Ids, labels_N: Ids | None) -> None:
    ends_B = np.cumsum(sizes_B)
    keep_N = np.ones(len(tokens_N), dtype=bool) if figures.pad_token_id is None else tokens_N != figures.pad_token_id
    lengths_B = _lengths(sizes_B, ends_B, keep_N)
    # The label of a position is that of the token after it, so the last token of a record is nobody's input.
    counts_N = keep_N.copy()
    counts_N[ends_B[sizes_B > 0] - 1] = False
    if labels_N is not None:
        counts_N[:-1] &= labels_N[1:] != IGNORED
    figures.records += len(sizes_B)
    figures.stored += len(tokens_N)
    figures.counted += int(counts_N.sum())
    figures.lengths.update(_counter(lengths_B))
    figures.stored_lengths.update(_counter(sizes_B))


def _lengths(sizes_B: Ids, ends_B: Ids, keep_N: NDArray[np.bool_]) -> Ids:
    """Each record's tokens up to its last one that is no padding."""
    lengths_B: Ids = np.zeros_like(sizes_B)
    filled_B = np.flatnonzero(sizes_B)  # reduceat has no empty runs
    if len(filled_B):
        begins_B = (ends_B - sizes_B)[filled_B]
        places_N = np.where(keep_N, np.arange(1, len(keep_N) + 1), 0)
        last_B = np.maximum.reduceat(places_N, begins_B)
        lengths_B[filled_B] = np.maximum(last_B - begins_B, 0)
    return lengths_B


def _counter(lengths_B: Ids) -> Mapping[int, int]:
    found, counts = np.unique(lengths_B, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _mark(figures: Figures, seen: NDArray[np.bool_], tokens_N: Ids) -> NDArray[np.bool_]:
    """Note which ids occur: flags by id, longer where a larger one came."""
    if not len(tokens_N):
        return seen
    smallest, largest = int(tokens_N.min()), int(tokens_N.max())
    figures.smallest = smallest if figures.smallest is None else min(figures.smallest, smallest)
    figures.largest = largest if figures.largest is None else max(figures.largest, largest)
    if smallest < 0 or largest >= _MOST_IDS:
        figures.negative += int((tokens_N < 0).sum())
        figures.beyond += int((tokens_N >= _MOST_IDS).sum())
        tokens_N = tokens_N[(tokens_N >= 0) & (tokens_N < _MOST_IDS)]
        largest = int(tokens_N.max()) if len(tokens_N) else -1
    if largest >= len(seen):
        seen = np.concatenate([seen, np.zeros(largest + 1 - len(seen), dtype=bool)])
    seen[tokens_N] = True
    return seen


def _batches(records: Records, columns: TokenColumns) -> Iterator[tuple[Ids, list[Ids]]]:
    """Stretches of the dataset: each record's size (B,), and its columns one record after another (N,)."""
    record, size, alike = 0, 0, True
    while record < len(records):
        if alike:
            try:
                if size == 0:
                    size = len(records.read_columns(record, [columns.tokens])[columns.tokens])
                rows = range(record, min(record + _rows_at_once(size), len(records)))
                read = records.read_rows(rows, columns.names, size)
                yield np.full(len(rows), size), [column_BT.reshape(-1) for column_BT in read]
                record = rows.stop
                continue
            except RowLengthError:
                alike = False
        sizes_B, read = _different_rows(records, columns, record)
        yield sizes_B, read
        record += len(sizes_B)


def _rows_at_once(size: int) -> int:
    return max(1, min(_BATCH_RECORDS, _BATCH_TOKENS // max(size, 1)))


def _different_rows(records: Records, columns: TokenColumns, first: int) -> tuple[Ids, list[Ids]]:
    """The records from ``first`` on, as many as make a batch."""
    sizes: list[int] = []
    parts: list[list[Ids]] = [[] for _ in columns.names]
    total = 0
    while total < _BATCH_TOKENS and len(sizes) < _BATCH_RECORDS and first + len(sizes) < len(records):
        record = first + len(sizes)
        values = records.read_columns(record, columns.names)
        arrays = [np.asarray(values[name]) for name in columns.names]
        if len({len(array) for array in arrays}) > 1:
            text = " and ".join(f"{len(array)} {name!r}" for name, array in zip(columns.names, arrays, strict=True))
            raise DataError(f"{records.describe(record)} has {text}: not one label a token")
        for part, array in zip(parts, arrays, strict=True):
            part.append(array)
        sizes.append(len(arrays[0]))
        total += sizes[-1]
    return np.array(sizes, dtype=np.int64), [np.concatenate(part).astype(np.int64) for part in parts]
