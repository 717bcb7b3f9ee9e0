"""Samples of several sources, in turn and in proportion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runformer.config.task import Shuffle
from runformer.data.order import Order, sample_order
from runformer.data.records import Ids, Records, RowLengthError
from runformer.errors import DataError

DOCUMENT_ENDS = "actual_seq_len"
_BLOCK = 4096  # places that are worked out together


class Interleaving:
    """Whose turn it is at every place of an endless sequence in which part i has ``counts[i]`` of ``sum(counts)``.

    Up to any place no part has a sample more, or less, than its share. The next place goes to the part whose next
    sample has to come soonest, of those whose next sample may come already: Tijdeman's chairman assignment (Discrete
    Mathematics 32, 1980), as earliest deadline first (Baruah et al., Algorithmica 15, 1996). The sequence has a
    period; blocks of it are worked out where they are asked for.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        divisor = math.gcd(*counts)
        self._counts = [count // divisor for count in counts]
        self.period = sum(self._counts)
        self._starts = [[0] * len(counts)]  # of each block that was reached, how many samples each part has had
        self._block: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def turns(self, places: Ids) -> tuple[Ids, Ids]:
        """The part at each place, and how many samples it has had before: int64, as many as places."""
        parts, numbers = np.empty_like(places), np.empty_like(places)
        rounds, inside = np.divmod(places, self.period)
        for block in np.unique(inside // _BLOCK).tolist():
            here = inside // _BLOCK == block
            block_parts, block_numbers = self._of_block(block)
            offsets = inside[here] - block * _BLOCK
            parts[here], numbers[here] = block_parts[offsets], block_numbers[offsets]
        numbers += rounds * np.array(self._counts, dtype=np.int64)[parts]
        return parts, numbers

    def _of_block(self, block: int) -> tuple[Ids, Ids]:
        if self._block is None or self._block[0] != block:
            while len(self._starts) <= block:
                self._work_out(len(self._starts) - 1)
            self._block = (block, *self._work_out(block))
        return self._block[1], self._block[2]

    def _work_out(self, block: int) -> tuple[Ids, Ids]:
        had = list(self._starts[block])
        begin = block * _BLOCK
        parts, numbers = [], []
        shares = [(part, count) for part, count in enumerate(self._counts) if count]
        for place in range(begin, min(begin + _BLOCK, self.period)):
            part = min(
                (-(-(had[part] + 1) * self.period // count), part)
                for part, count in shares
                if had[part] * self.period < (place + 1) * count
            )[1]
            parts.append(part)
            numbers.append(had[part])
            had[part] += 1
        if len(self._starts) == block + 1:
            self._starts.append(had)
        return np.array(parts, dtype=np.int64), np.array(numbers, dtype=np.int64)


class MixedRecords(Records):
    """The samples of several sources by their place in the mixture, which goes on without end.

    Args:
        parts: the sources.
        names: what messages call each, behind its files.
        counts: how many samples of each make an epoch; None: each part once.
        shuffle: whether each part comes in a random order, new in each pass over it.
        seed: of these orders.

    Raises:
        DataError: a part from which samples are wanted has none.
    """

    def __init__(
        self, parts: Sequence[Records], names: Sequence[str], counts: Sequence[int] | None, shuffle: bool, seed: int
    ) -> None:
        self._counts = [len(part) for part in parts] if counts is None else list(counts)
        for part, label, count in zip(parts, names, self._counts, strict=True):
            if count and not len(part):
                raise DataError(f"{label}: {part.name} holds no records", hint="give it no share of the mixture")
        if not any(self._counts):
            raise DataError("a mixture needs samples of at least one part")
        self._parts = parts
        self._labels = names
        self.name = ", ".join(part.name for part in parts)
        kind: Shuffle | None = "hashed" if shuffle else None
        self._orders = [sample_order(max(1, len(part)), kind, seed + number) for number, part in enumerate(parts)]
        self._turns = Interleaving(self._counts)

    @property
    def column_names(self) -> Sequence[str]:
        """The columns that all parts have; of borders of documents it is enough that one has them."""
        first, *others = (part.column_names for part in self._parts)
        names = [name for name in first if all(name in names for names in others)]
        borders = any(DOCUMENT_ENDS in names for names in (first, *others))
        return [*names, DOCUMENT_ENDS] if borders and DOCUMENT_ENDS not in names else names

    def __len__(self) -> int:
        """The samples of one epoch."""
        return sum(self._counts)

    def describe(self, record: int) -> str:
        """Which part it is of, and where it lies there."""
        part, number = self._find([record])[0]
        return f"{self._labels[part]}: {self._parts[part].describe(number)}"

    def read_columns(self, record: int, columns: Sequence[str]) -> Mapping[str, Any]:
        """As ``Records``. A part without borders of documents has rows that are one document each."""
        part, number = self._find([record])[0]
        source = self._parts[part]
        missing = DOCUMENT_ENDS in columns and DOCUMENT_ENDS not in source.column_names
        if not missing:
            return source.read_columns(number, columns)
        stored = [name for name in columns if name != DOCUMENT_ENDS]
        values = source.read_columns(number, stored or source.column_names[:1])
        whole = np.asarray(next(iter(values.values()))).size
        return {**values, DOCUMENT_ENDS: np.array([whole], dtype=np.int64)}

    def read_rows(self, records: Sequence[int] | Ids, columns: Sequence[str], length: int) -> list[Ids]:
        """As ``Records``, with the records of each part read together."""
        found = self._find(records)
        rows = [np.empty((len(records), length), dtype=np.int64) for _ in columns]
        for part in sorted({part for part, _ in found}):
            here = [place for place, (owner, _) in enumerate(found) if owner == part]
            try:
                read = self._parts[part].read_rows([found[place][1] for place in here], columns, length)
            except RowLengthError as error:
                place = next(place for place in here if found[place][1] == error.record)
                raise RowLengthError(int(records[place]), error.column, error.size) from error
            for target, values in zip(rows, read, strict=True):
                target[here] = values
        return rows

    def _find(self, records: Sequence[int] | Ids) -> list[tuple[int, int]]:
        """The part of each record, and its number there."""
        parts, numbers = self._turns.turns(np.asarray(records, dtype=np.int64))
        found = np.empty_like(numbers)
        for part in np.unique(parts).tolist():
            here = parts == part
            found[here] = self._in_order(part, numbers[here])
        return list(zip(parts.tolist(), found.tolist(), strict=True))

    def _in_order(self, part: int, numbers: Ids) -> Order:
        """The records that a part has at these places of its order, which goes on with another pass, and another."""
        passes, places = np.divmod(numbers, len(self._parts[part]))
        found = np.empty_like(places)
        for number in np.unique(passes).tolist():
            here = passes == number
            first, last = int(places[here].min()), int(places[here].max())
            found[here] = self._orders[part].span(number, first, last + 1)[places[here] - first]
        return found
