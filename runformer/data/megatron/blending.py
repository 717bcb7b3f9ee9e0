"""In which order a blend takes samples from its datasets.

Sample ``i`` comes from the dataset that is furthest behind its share: the one with the largest
``weight · max(i, 1) - samples taken so far`` in double precision, of equals the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runformer.data.megatron.indices import count_up

DatasetIndex = NDArray[np.int16]
SampleIndex = NDArray[np.int64]
Blend = tuple[DatasetIndex, SampleIndex]

_CHUNK = 1 << 16  # samples
_MANY = 40  # datasets: from here on numpy finds the largest of them faster than Python


def empty_blend(size: int) -> Blend:
    """Room for the order of ``size`` samples."""
    return np.empty(size, dtype=np.int16), np.empty(size, dtype=np.int64)


def blending_indices(weights: Sequence[float], size: int, out: Blend | None = None) -> Blend:
    """The datasets of ``size`` samples, and which of its samples each is; written into ``out`` where that is given.

    Args:
        weights: the share of each dataset; they sum up to 1.
        size: number of samples.
        out: int16 and int64, of shape (size,).
    """
    return _blend(list(map(float, weights)), [math.inf] * len(weights), size, out or empty_blend(size))


def exhaustive_blending_indices(sizes: Sequence[int], out: Blend | None = None) -> Blend:
    """As ``blending_indices``, but each dataset gives ``sizes`` samples, and drops out behind its last."""
    total = sum(sizes)
    weights = [size / total for size in sizes]
    return _blend(weights, list(map(float, sizes)), total, out or empty_blend(total))


def _blend(weights: list[float], limits: list[float], size: int, out: Blend) -> Blend:
    datasets, samples = out
    if len(weights) == 1:
        datasets[:] = 0
        count_up(samples, 0)
        return out
    taken = [0] * len(weights)
    step = _span_of_many if len(weights) >= _MANY else _span_of_few
    for first in range(0, size, _CHUNK):
        last = min(first + _CHUNK, size)
        chosen = step(weights, limits, taken, first, last)
        for dataset in range(len(weights)):
            places = np.flatnonzero(chosen == dataset)
            samples[first + places] = taken[dataset] + np.arange(places.size)
            taken[dataset] += places.size
        datasets[first:last] = chosen
    return out


def _span_of_few(
    weights: list[float], limits: list[float], taken: list[int], first: int, last: int
) -> NDArray[np.int16]:
    """The datasets of samples ``first`` to before ``last``, after ``taken`` of each; a dataset stops at its limit."""
    counts = list(map(float, taken))
    # A dataset that has no more to give is behind by nothing, ever.
    shares = [
        weight if count < limit else -math.inf for weight, count, limit in zip(weights, counts, limits, strict=True)
    ]
    chosen = []
    for sample in range(first, last):
        place = float(sample or 1)
        best, best_error = 0, -math.inf
        for dataset, share in enumerate(shares):
            error = share * place - counts[dataset]
            if error > best_error:
                best, best_error = dataset, error
        chosen.append(best)
        counts[best] += 1.0
        if counts[best] == limits[best]:
            shares[best] = -math.inf
    return np.array(chosen, dtype=np.int16)


def _span_of_many(
    weights: list[float], limits: list[float], taken: list[int], first: int, last: int
) -> NDArray[np.int16]:
    """As ``_span_of_few``."""
    counts = np.array(taken, dtype=np.float64)
    shares = np.where(counts < limits, weights, -np.inf)
    chosen = np.empty(last - first, dtype=np.int16)
    errors = np.empty_like(shares)
    for sample in range(first, last):
        np.multiply(shares, float(sample or 1), out=errors)
        np.subtract(errors, counts, out=errors)
        best = int(errors.argmax())
        chosen[sample - first] = best
        counts[best] += 1.0
        if counts[best] == limits[best]:
            shares[best] = -np.inf
    return chosen
