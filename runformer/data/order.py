"""The order in which an epoch visits the samples, of which any stretch can be asked for.

Four orders: that of the files; the one that a source has by itself; MindSpore's shuffle, number for number; and a
permutation that is computed where it is asked for, and takes no memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from runformer.config.task import Shuffle
from runformer.data.native import native

Order = NDArray[np.int64]
_Words = NDArray[np.uint64]

_MULTIPLIER, _MODULUS = 16807, 2**31 - 1  # minstd_rand0: Park and Miller, "Random number generators", CACM 1988
_RANGE = _MODULUS - 2  # its numbers are 1 to _MODULUS - 1
_ROUNDS = 8
_AT_ONCE = 8192  # samples


class SampleOrder(ABC):
    """The samples of every epoch, in order.

    Attributes:
        num_samples: how many samples an epoch visits.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    @abstractmethod
    def span(self, epoch: int, begin: int, end: int) -> Order:
        """The samples from place ``begin`` of an epoch (counted from 0) to before ``end``: int64, (end - begin,)."""

    def runs(self, epoch: int, begin: int, end: int, size: int) -> Iterator[Order]:
        """A stretch of an epoch in runs of ``size`` samples, the last one perhaps shorter."""
        at_once = max(1, _AT_ONCE // size) * size
        for start in range(begin, end, at_once):
            samples = self.span(epoch, start, min(start + at_once, end))
            for place in range(0, len(samples), size):
                yield samples[place : place + size]

    def epoch(self, number: int) -> Order:
        """All samples of an epoch: int64 of shape (num_samples,)."""
        return self.span(number, 0, self.num_samples)


def sample_order(num_samples: int, shuffle: Shuffle | None, seed: int) -> SampleOrder:
    """The order that a task asks for; ``seed`` is the run's (MindSpore's ``set_seed``)."""
    if shuffle is None:
        return FileOrder(num_samples)
    if shuffle == "source":
        return SourceOrder(num_samples)
    return ReferenceOrder(num_samples, seed) if shuffle == "reference" else HashedOrder(num_samples, seed)


class FileOrder(SampleOrder):
    """Every epoch is 0, 1, 2, …."""

    def span(self, epoch: int, begin: int, end: int) -> Order:  # noqa: ARG002 - all epochs are alike
        """As ``SampleOrder``."""
        return np.arange(begin, end, dtype=np.int64)


class SourceOrder(SampleOrder):
    """Numbers go on from one epoch to the next: the source has an order of its own, without end."""

    def span(self, epoch: int, begin: int, end: int) -> Order:
        """As ``SampleOrder``."""
        return np.arange(begin, end, dtype=np.int64) + epoch * self.num_samples


class ReferenceOrder(SampleOrder):
    """``MindDataset(shuffle=True)``: libstdc++'s ``std::shuffle`` with ``std::default_random_engine``.

    That engine is ``minstd_rand0``. An epoch shuffles the order of the one before, with a seed of its own, so those
    before it are shuffled first if they were not yet. Eight bytes are kept for each sample.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        super().__init__(num_samples)
        self._seed = seed
        self._restart()

    def _restart(self) -> None:
        self._order = np.arange(self.num_samples, dtype=np.int64)
        self._shuffled_epochs = 0

    def span(self, epoch: int, begin: int, end: int) -> Order:
        """As ``SampleOrder``."""
        if epoch + 1 < self._shuffled_epochs:
            self._restart()
        while self._shuffled_epochs <= epoch:
            shuffle_like_libstdcxx(self._order, self._seed + 1 + self._shuffled_epochs)
            self._shuffled_epochs += 1
        return self._order[begin:end].copy()


class HashedOrder(SampleOrder):
    """A pseudorandom permutation of the sample numbers, keyed by seed and epoch, that is nowhere stored.

    A Feistel network (Luby and Rackoff, SIAM J. Comput. 17, 1988) permutes all numbers of as many bits as the last
    sample's has; what comes out too large goes through it again (cycle walking: Black and Rogaway, CT-RSA 2002).
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        super().__init__(num_samples)
        self._seed = seed
        bits = max(2, (num_samples - 1).bit_length())
        self._low_bits, self._high_bits = bits - bits // 2, bits // 2

    def span(self, epoch: int, begin: int, end: int) -> Order:
        """As ``SampleOrder``."""
        keys = self._keys(epoch)
        numbers = self._permuted(np.arange(begin, end, dtype=np.uint64), keys)
        while (outside := np.flatnonzero(numbers >= self.num_samples)).size:
            numbers[outside] = self._permuted(numbers[outside], keys)
        return numbers.astype(np.int64)

    def _keys(self, epoch: int) -> _Words:
        words: _Words = np.array([self._seed % 2**64, epoch % 2**64], dtype=np.uint64)
        rounds: _Words = np.arange(1, _ROUNDS + 1, dtype=np.uint64)
        return _mixed(_mixed(_mixed(words[:1]) + words[1:]) + rounds)

    def _permuted(self, numbers: _Words, keys: _Words) -> _Words:
        """Each round adds to the high part a hash of the low one, and lets them change places."""
        low_bits, high_bits = self._low_bits, self._high_bits
        for key in keys:
            low = numbers & np.uint64((1 << low_bits) - 1)
            high = (numbers >> np.uint64(low_bits)) ^ (_mixed(low + key) & np.uint64((1 << high_bits) - 1))
            low_bits, high_bits = high_bits, low_bits
            numbers = (low << np.uint64(low_bits)) | high
        return numbers


def _mixed(words: _Words) -> _Words:
    """A hash of 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def shuffle_like_libstdcxx(order: Order, seed: int) -> None:
    """Shuffle in place as ``std::shuffle(items, std::default_random_engine(seed))`` of libstdc++ does."""
    if native is not None:
        native.shuffle(order, seed)
    else:
        shuffle_in_python(order, seed)


def shuffle_in_python(order: Order, seed: int) -> None:
    """The same where nothing was compiled: a microsecond a number, not ten nanoseconds."""
    items = order.tolist()
    _shuffle(items, _UniformDraws(seed))
    order[:] = items


def _shuffle(items: list[int], draw: _UniformDraws) -> None:
    size = len(items)
    if size < 2:
        return
    if _RANGE // size < size:  # one number has not enough range for two places
        for place in range(1, size):
            other = draw.below(place + 1)
            items[place], items[other] = items[other], items[place]
        return
    place = 1
    if size % 2 == 0:
        other = draw.below(2)
        items[1], items[other] = items[other], items[1]
        place = 2
    for first in range(place, size, 2):
        one, two = divmod(draw.below((first + 1) * (first + 2)), first + 2)
        items[first], items[one] = items[one], items[first]
        items[first + 1], items[two] = items[two], items[first + 1]


class _UniformDraws:
    """``std::uniform_int_distribution`` over ``minstd_rand0``, for ranges of less than 2**31 - 2 numbers."""

    def __init__(self, seed: int) -> None:
        self._state = seed % 2**32 % _MODULUS or 1

    def below(self, count: int) -> int:
        """A number from 0 to ``count - 1``."""
        scale = _RANGE // count
        limit = count * scale
        while True:
            self._state = self._state * _MULTIPLIER % _MODULUS
            if self._state - 1 < limit:
                return (self._state - 1) // scale
