"""The order in which an epoch visits the samples: file order, or MindSpore's shuffle number for number.

``MindDataset(shuffle=True)`` is libstdc++'s ``std::shuffle`` with ``std::default_random_engine``, which is
``minstd_rand0``. An epoch shuffles the order of the one before with a seed of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Order = NDArray[np.int64]

_MULTIPLIER, _MODULUS = 16807, 2**31 - 1  # minstd_rand0: Park and Miller, "Random number generators", CACM 1988
_RANGE = _MODULUS - 2  # its numbers are 1 to _MODULUS - 1


class SampleOrder:
    """The samples of every epoch, in order.

    Args:
        num_samples: how many samples an epoch visits.
        shuffle: whether epochs are shuffled; else each is 0, 1, 2, ….
        seed: the run's seed (MindSpore's ``set_seed``).
    """

    def __init__(self, num_samples: int, shuffle: bool, seed: int) -> None:
        self.num_samples = num_samples
        self._shuffle = shuffle
        self._seed = seed
        self._restart()

    def _restart(self) -> None:
        self._order = list(range(self.num_samples))
        self._shuffled_epochs = 0

    def epoch(self, number: int) -> Order:
        """The samples of an epoch (counted from 0): int64 of shape (num_samples,).

        An epoch follows from the ones before it, so these are shuffled first if they were not yet: about 50 ms
        for each epoch of 50 000 samples.
        """
        if self._shuffle:
            if number + 1 < self._shuffled_epochs:
                self._restart()
            while self._shuffled_epochs <= number:
                shuffle_like_libstdcxx(self._order, self._seed + 1 + self._shuffled_epochs)
                self._shuffled_epochs += 1
        return np.array(self._order, dtype=np.int64)


def shuffle_like_libstdcxx(items: list[int], seed: int) -> None:
    """Shuffle in place as ``std::shuffle(items, std::default_random_engine(seed))`` of libstdc++ does."""
    size = len(items)
    if size < 2:
        return
    draw = _UniformDraws(seed)
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
