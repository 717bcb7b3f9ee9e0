"""Samples of one indexed dataset, and of several that are blended.

Shapes: B samples, T tokens of a sample (one more than the sequence length, where the extra token is asked for).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runformer.config.shares import PARTS
from runformer.config.task import MegatronFiles
from runformer.data.megatron.blending import blending_indices, exhaustive_blending_indices
from runformer.data.megatron.cache import Arrays, IndexCache, Spec
from runformer.data.megatron.indexed import IndexedDataset
from runformer.data.megatron.indices import (
    Layout,
    fill_document_index,
    fill_sample_index,
    fill_shuffle_index,
    normalized,
    split_bounds,
    split_matrix,
)
from runformer.data.records import Ids
from runformer.errors import DataError

_SURPLUS = 1.005  # of what a blend takes from a dataset, so many are made
_INT16 = int(np.iinfo(np.int16).max)


class Samples(ABC):
    """Rows of tokens in Megatron's order.

    Attributes:
        identifiers: what the order follows from, as the descriptions of caches have it.
    """

    identifiers: Mapping[str, Any]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, samples: Ids) -> Ids:
        """The tokens of some samples: int64, (B, T); what is missing of the last one is ``options.pad``.

        Raises:
            DataError: the dataset is not the one that its indices were made for.
        """


class GPTSamples(Samples):
    """One dataset, cut into samples as by Megatron-core's ``GPTDataset``. Nothing of it is held in memory.

    Args:
        options: what is asked for.
        place: which of its datasets this is.
        num_samples: how many samples are needed; None: those of one epoch.

    Raises:
        DataError: a file is not there or damaged; the part of the dataset holds no tokens.
    """

    def __init__(self, options: MegatronFiles, place: int, num_samples: int | None) -> None:
        self.name = options.names[place]
        self._options = options
        self._dataset = IndexedDataset(options.prefixes[place])
        if self._dataset.dtype.kind not in "iu":
            raise DataError(f"{self.name}.bin holds numbers of type {self._dataset.dtype}, not token ids")
        self.layout = self._layout(num_samples)
        self.identifiers = {
            "class": "GPTDataset",
            "dataset_path": self.name,
            "num_samples": num_samples,
            "index_split": options.part,
            "random_seed": options.seed,
            "sequence_length": options.sequence_length,
            "split": options.split,
            "split_matrix": None if options.split is None else split_matrix(options.split),
            "tokenizer": None,
        }
        self._cache = self._index_cache(options.cache or options.prefixes[place] / "cache" / "GPTDataset_indices")
        arrays = self._cache.open(self._build)
        self.document_index = arrays["document_index"]
        self.sample_index = arrays["sample_index"]
        self.shuffle_index = arrays["shuffle_index"]

    def __len__(self) -> int:
        return self.layout.samples

    def _layout(self, num_samples: int | None) -> Layout:
        options, lengths = self._options, self._dataset.lengths
        bounds = (0, len(lengths))
        if options.split is not None:
            bounds = split_bounds(options.split, PARTS.index(options.part), len(lengths)) or (0, 0)
        tokens = int(np.sum(lengths[slice(*bounds)], dtype=np.int64))
        if tokens == 0:
            where = "" if options.split is None else f" in the {options.part} part of split {options.split!r}"
            raise DataError(f"{self.name} holds no tokens{where}: it has {len(lengths)} documents")
        return Layout(
            first=bounds[0],
            last=bounds[1],
            tokens=tokens,
            num_samples=num_samples,
            sequence_length=options.sequence_length,
            extra=int(options.extra_token),
            drop_last=options.part != "valid" or options.drop_last,
        )

    def _index_cache(self, folder: Path) -> IndexCache:
        layout = self.layout
        either = (np.dtype(np.int32), np.dtype(np.int64))
        (documents, document_type), (samples, sample_type), (shuffled, shuffled_type) = (
            layout.document_index,
            layout.sample_index,
            layout.shuffle_index,
        )
        specs = {
            "document_index": (documents, (document_type,)),
            "sample_index": (samples, (sample_type, *either)),  # MindFormers always has 64 bits
            "shuffle_index": (shuffled, (shuffled_type,)),
        }
        return IndexCache(folder, "GPTDataset", self._options.part, self.identifiers, specs)

    def _build(self, arrays: Arrays) -> None:
        random = np.random.RandomState(self._options.seed)
        fill_document_index(arrays["document_index"], self.layout, random)
        fill_sample_index(arrays["sample_index"], self.layout, arrays["document_index"], self._dataset.lengths)
        fill_shuffle_index(arrays["shuffle_index"], self.layout, random)

    def read(self, samples: Ids) -> Ids:
        """As ``Samples``."""
        numbers = self.shuffle_index[samples].astype(np.int64)
        if numbers.size and numbers.max() >= len(self):
            raise self._foreign_index()
        length = self._options.sequence_length + self.layout.extra
        begins, sizes, rows = self._spans(self.sample_index[numbers], self.sample_index[numbers + 1])
        totals_B = np.bincount(rows, weights=sizes, minlength=len(numbers)).astype(np.int64)
        short_B = (totals_B < length) & (self.layout.drop_last | (numbers != len(self) - 1))
        if np.any(totals_B > length) or np.any(short_B):
            raise self._foreign_index()
        before = np.cumsum(sizes) - sizes
        places = np.repeat(begins - before, sizes) + np.arange(int(sizes.sum()))
        tokens_BT = np.full((len(numbers), length), self._options.pad, dtype=np.int64)
        tokens_BT[np.arange(length) < totals_B[:, None]] = self._dataset.tokens[places]
        return tokens_BT

    def _spans(self, first: NDArray[Any], last: NDArray[Any]) -> tuple[Ids, Ids, Ids]:
        """The stretches of tokens that samples are made of: where they begin, their sizes, and which sample has them.

        Samples go from ``first`` to ``last``, which are (place in the document index, token), of shape (B, 2).
        """
        first, last = first.astype(np.int64), last.astype(np.int64)
        counts_B = last[:, 0] - first[:, 0] + 1
        longest = len(self.document_index)
        if np.any((counts_B < 1) | (first[:, 0] < 0) | (last[:, 0] >= longest)):
            raise self._foreign_index()
        rows = np.repeat(np.arange(len(counts_B)), counts_B)
        ends_B = np.cumsum(counts_B)
        place = np.arange(len(rows)) - np.repeat(ends_B - counts_B, counts_B) + np.repeat(first[:, 0], counts_B)
        documents = self.document_index[place].astype(np.int64)
        if np.any((documents < 0) | (documents >= len(self._dataset))):
            raise self._foreign_index()
        begins, ends = np.zeros_like(documents), self._dataset.lengths[documents].astype(np.int64)
        longest_end = ends.copy()
        begins[ends_B - counts_B] = first[:, 1]
        ends[ends_B - 1] = last[:, 1] + self.layout.extra
        if np.any((begins < 0) | (begins > ends) | (ends > longest_end)):
            raise self._foreign_index()
        return self._dataset.begins(documents) + begins, ends - begins, rows

    def _foreign_index(self) -> DataError:
        message = f"the indices of {self.name} in {self._cache.folder} are damaged, or were made for other files"
        return DataError(message, hint=f"delete that folder: it is made anew ({self._cache.kind}, {self._cache.part})")


class BlendedSamples(Samples):
    """Several datasets, of which each gives its share, as by Megatron-core's ``BlendedDataset``.

    Args:
        options: what is asked for.
        datasets: what is blended.
        weights: the share of each; None: by their sizes.
        size: number of samples; None: all, each once.

    Raises:
        DataError: one of them has not as many samples as it would give.
    """

    def __init__(
        self, options: MegatronFiles, datasets: Sequence[Samples], weights: Sequence[float] | None, size: int | None
    ) -> None:
        if len(datasets) >= _INT16:
            raise DataError(f"{len(datasets)} datasets cannot be blended; {_INT16 - 1} can")
        sizes = [len(dataset) for dataset in datasets]
        empty = [options.names[place] for place, samples in enumerate(sizes) if not samples]
        if empty:
            raise DataError(f"{empty[0]} holds not enough tokens for one sample of {options.sequence_length}")
        self._options, self._datasets = options, datasets
        self._size = sum(sizes) if size is None else size if weights else min(size, sum(sizes))
        self._exhaustive = size is None
        self._weights: list[float] = sizes if size is None else normalized(list(weights or sizes))  # type: ignore[assignment]
        self.identifiers = {
            "class": "BlendedDataset",
            "datasets": [dataset.identifiers for dataset in datasets],
            "split": options.part,
            "weights": self._weights,
            "size": None if size is None else self._size,
        }
        folder = options.cache or options.prefixes[0] / "cache" / "BlendedDataset_indices"
        specs: dict[str, Spec] = {
            "dataset_index": ((self._size,), (np.dtype(np.int16),)),
            "dataset_sample_index": ((self._size,), (np.dtype(np.int64),)),
        }
        self._cache = IndexCache(folder, "BlendedDataset", options.part, self.identifiers, specs)
        arrays = self._cache.open(self._build)
        self.dataset_index, self.dataset_sample_index = arrays["dataset_index"], arrays["dataset_sample_index"]

    def __len__(self) -> int:
        return self._size

    def _build(self, arrays: Arrays) -> None:
        out = (arrays["dataset_index"], arrays["dataset_sample_index"])
        if self._exhaustive:
            exhaustive_blending_indices([int(size) for size in self._weights], out)
        else:
            blending_indices(self._weights, self._size, out)

    def read(self, samples: Ids) -> Ids:
        """As ``Samples``."""
        of_B = self.dataset_index[samples]
        numbers_B = self.dataset_sample_index[samples]
        tokens_BT: Ids | None = None
        for place in np.unique(of_B):
            mine_B = np.flatnonzero(of_B == place)
            self._check(int(place), numbers_B[mine_B])
            rows = self._datasets[int(place)].read(numbers_B[mine_B])
            if tokens_BT is None:
                tokens_BT = np.empty((len(of_B), rows.shape[1]), dtype=np.int64)
            tokens_BT[mine_B] = rows
        return np.empty((0, 0), dtype=np.int64) if tokens_BT is None else tokens_BT

    def _check(self, place: int, numbers: Ids) -> None:
        if not 0 <= place < len(self._datasets) or np.any(numbers < 0):
            message = f"the indices of the blend in {self._cache.folder} are damaged"
            raise DataError(message, hint="delete that folder: it is made anew")
        if numbers.max() >= len(self._datasets[place]):
            message = f"the blend takes sample {numbers.max()} of {self._options.names[place]}, which has fewer"
            raise DataError(f"{message}: {len(self._datasets[place])}", hint="lower sizes, or give it a smaller weight")


def open_samples(options: MegatronFiles) -> Samples:
    """The samples of a configuration, as MindFormers' builder makes them of Megatron-core's classes.

    Raises:
        DataError: as ``GPTSamples`` and ``BlendedSamples``.
    """
    weights, size, count = options.weights, options.size, len(options.prefixes)
    if weights is None and count == 1:
        return GPTSamples(options, 0, size)
    if weights is None:
        datasets = [GPTSamples(options, place, None) for place in range(count)]
        return BlendedSamples(options, datasets, None, size)
    assert size is not None, "weights are of a number of samples"
    shares = normalized(list(weights))
    needed = [math.ceil(size * share * _SURPLUS) for share in shares]
    datasets = [GPTSamples(options, place, number) for place, number in enumerate(needed)]
    return BlendedSamples(options, datasets, shares, sum(needed))
