"""The three indices that make samples of documents, number for number as Megatron-core computes them.

A *document* here is one sequence of the indexed dataset. The tokens of all documents, epoch after epoch, each in a
random order, are one long row; samples are cut from it, one behind the other, and shuffled::

    document index   i32 (E * D,)    the documents in the order of that row
    sample index     (S + 1, 2)      where each sample begins: place in the document index, and token in the document
    shuffle index    (S,)            which sample is read first, second, …
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runformer.config.shares import split_numbers

DocumentIndex = NDArray[np.int32]
SampleIndex = NDArray[np.int32] | NDArray[np.int64]
ShuffleIndex = NDArray[np.uint32] | NDArray[np.int64]

_CHUNK = 1 << 18  # documents
_LAST_EPOCH_SHARE = 0.80


@dataclass(frozen=True, slots=True)
class Layout:
    """How many documents, epochs and samples there are.

    Args:
        first: number of the first document; ``last`` is behind the last.
        tokens: of all these documents, once.
        num_samples: how many samples are wanted; None: as many as one epoch has.
        sequence_length: tokens of a sample.
        extra: 1 where a sample has one token more, the first of the next sample; else 0.
        drop_last: leave out a last sample that is too short.
    """

    first: int
    last: int
    tokens: int
    num_samples: int | None
    sequence_length: int
    extra: int
    drop_last: bool

    @property
    def documents(self) -> int:
        """Documents of an epoch."""
        return self.last - self.first

    @property
    def epochs(self) -> int:
        """As few as have enough tokens."""
        if self.num_samples is None:
            return 1
        return max(1, -(-(self.num_samples * self.sequence_length + self.extra) // self.tokens))

    @property
    def samples(self) -> int:
        """Samples of all epochs."""
        tokens = self.epochs * self.tokens - self.extra
        if self.drop_last:
            return tokens // self.sequence_length
        return int(
            np.ceil(np.float32(tokens) / np.float32(self.sequence_length))
        )  # Megatron has it in single precision

    @property
    def samples_before_last_epoch(self) -> int:
        """Samples that end before the last epoch does."""
        return ((self.epochs - 1) * self.tokens - self.extra) // self.sequence_length

    @property
    def last_epoch_apart(self) -> bool:
        """Whether the last epoch is shuffled by itself, as little of it is needed."""
        if self.epochs == 1 or self.num_samples is None:
            return False
        per_epoch = (self.tokens - self.extra) // self.sequence_length
        return self.num_samples - self.samples_before_last_epoch < int(_LAST_EPOCH_SHARE * per_epoch)

    @property
    def document_index(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype."""
        return (self.epochs * self.documents,), np.dtype(np.int32)

    @property
    def sample_index(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype."""
        wide = self.epochs * self.documents > np.iinfo(np.int32).max
        return (self.samples + 1, 2), np.dtype(np.int64 if wide else np.int32)

    @property
    def shuffle_index(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype."""
        wide = self.samples >= np.iinfo(np.uint32).max - 1
        return (self.samples,), np.dtype(np.int64 if wide else np.uint32)


def fill_document_index(index: DocumentIndex, layout: Layout, random: np.random.RandomState) -> None:
    """All epochs are shuffled as one, but for a last one that is apart."""
    count_up(index[: layout.documents], layout.first)
    filled = layout.documents
    while filled < len(index):  # what is there is copied behind itself
        copied = min(filled, len(index) - filled)
        index[filled : filled + copied] = index[:copied]
        filled += copied
    together = len(index) - (layout.documents if layout.last_epoch_apart else 0)
    random.shuffle(index[:together])
    if layout.last_epoch_apart:
        random.shuffle(index[together:])


def count_up(index: NDArray[Any], first: int) -> None:
    """Fill with ``first``, ``first + 1``, …, of which only few are in memory at once."""
    for begin in range(0, len(index), _CHUNK):
        part = index[begin : begin + _CHUNK]
        part[:] = np.arange(first + begin, first + begin + len(part))


def fill_sample_index(index: SampleIndex, layout: Layout, documents: DocumentIndex, lengths: NDArray[np.int32]) -> None:
    """Sample ``i`` begins at token ``i * sequence_length`` of the row; ``lengths`` are those of all documents."""
    index[0] = 0
    length, extra = layout.sequence_length, layout.extra
    filled, place = 0, 0  # samples whose end is known; tokens of the row
    for first in range(0, len(documents), _CHUNK):
        sizes = lengths[documents[first : first + _CHUNK]].astype(np.int64)
        ends = place + np.cumsum(sizes)
        place = int(ends[-1])
        end_here = min((place - extra) // length, layout.samples)
        for begin in range(filled + 1, end_here + 1, _CHUNK):
            numbers = np.arange(begin, min(begin + _CHUNK, end_here + 1), dtype=np.int64)
            needed = numbers * length + extra
            at = np.searchsorted(ends, needed)  # the document where there are enough tokens for the first time
            index[numbers, 0] = first + at
            index[numbers, 1] = needed - extra - (ends[at] - sizes[at])
        filled = max(filled, end_here)
    # What is not full ends with the row.
    index[filled + 1 :, 0] = len(documents) - 1
    index[filled + 1 :, 1] = int(lengths[documents[-1]]) - extra


def fill_shuffle_index(index: ShuffleIndex, layout: Layout, random: np.random.RandomState) -> None:
    """Samples of a last epoch that is apart stay behind the others."""
    together = layout.samples_before_last_epoch if layout.last_epoch_apart else layout.samples
    count_up(index, 0)
    random.shuffle(index[:together])
    if together < layout.samples:
        random.shuffle(index[together:])


def split_bounds(split: str, part: int, documents: int) -> tuple[int, int] | None:
    """The documents of one part: number of the first, and behind the last; None if the part has no share.

    Args:
        split: shares of training, validation and test, such as ``"969, 30, 1"``.
        part: 0, 1 or 2.
        documents: how many there are.
    """
    share = split_matrix(split)[part]
    return None if share is None else (round(share[0] * float(documents)), round(share[1] * float(documents)))


def split_matrix(split: str) -> list[tuple[float, float] | None]:
    """Where the parts begin and end, of 1; None for one without a share.

    Raises:
        ValueError: these are not one to three numbers with a sum above 0.
    """
    shares = normalized(split_numbers(split))
    edges: list[float] = [0]  # an integer: as such it stands in the descriptions of caches
    for share in shares:
        edges.append(edges[-1] + share)
    return [(begin, end) if begin < end else None for begin, end in pairwise(edges)]


def normalized(weights: list[float]) -> list[float]:
    """Weights with a sum of 1."""
    array = np.array(weights, dtype=np.float64)
    result: list[float] = (array / np.sum(array)).tolist()
    return result
