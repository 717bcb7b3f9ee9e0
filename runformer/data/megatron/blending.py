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
from runformer.data.native import native

DatasetIndex = NDArray[np.int16]
SampleIndex = NDArray[np.int64]
Blend = tuple[DatasetIndex, SampleIndex]


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
    elif native is None:
        blend_in_python(weights, limits, size, out)
    else:
        native.blend(np.array(weights), np.array(limits), np.zeros(len(weights)), datasets, samples)
    return out


def blend_in_python(weights: Sequence[float], limits: Sequence[float], size: int, out: Blend) -> None:
    """The same where nothing was compiled: a dataset stops at its limit."""
    datasets, samples = out
    counts = [0.0] * len(weights)
    shares = [weight if limit else -math.inf for weight, limit in zip(weights, limits, strict=True)]
    for place in range(size):
        best, most = 0, -math.inf
        for dataset, share in enumerate(shares):
            behind = share * (place or 1) - counts[dataset]
            if behind > most:
                best, most = dataset, behind
        datasets[place], samples[place] = best, int(counts[best])
        counts[best] += 1.0
        if counts[best] == limits[best]:
            shares[best] = -math.inf  # it is behind by nothing, ever
