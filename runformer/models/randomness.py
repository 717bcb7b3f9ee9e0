"""Dropout that depends on nothing but the run's seed and the place of an element in the run.

Every element's number is a hash of the step, of its row in the global batch, of its position there, of its layer and
of its feature: a process that computes some of the elements drops those that a single process would drop, whatever it
is that is split, and a resumed run goes on with the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

_WORD = (1 << 32) - 1


@dataclass
class Place:
    """Where a micro-batch stands in the run; shared by all layers of a model.

    Attributes:
        key: int64 scalar, of the seed and the step; None: 0.
        rows_B: numbers of the rows in the global batch; None: 0, 1, 2, ….
        positions_L: numbers of the positions in their rows; None: 0, 1, 2, ….
    """

    key: Tensor | None = None
    rows_B: Tensor | None = None
    positions_L: Tensor | None = None


def key_of(*names: object) -> int:
    """A 32-bit key of some names."""
    return xxhash.xxh32_intdigest(":".join(map(str, names)).encode())


def dropout(x_BLD: Tensor, probability: float, place: Place, layer: int, first_feature: int) -> Tensor:
    """Set elements to zero with a probability, and scale the others up so that the mean stays.

    Args:
        x_BLD: activations.
        probability: from 0 to below 1.
        place: where they stand in the run.
        layer: a key of the layer.
        first_feature: the number of the first element of the last dimension.
    """
    if probability == 0:
        return x_BLD
    rows, positions, features = x_BLD.shape
    device = x_BLD.device
    rows_B = torch.arange(rows, device=device) if place.rows_B is None else place.rows_B
    positions_L = torch.arange(positions, device=device) if place.positions_L is None else place.positions_L
    features_D = torch.arange(first_feature, first_feature + features, device=device)
    key = layer if place.key is None else place.key ^ layer
    words_BL = _mix(_mix(rows_B ^ key).unsqueeze(1) ^ positions_L)
    words_BLD = _mix(words_BL.unsqueeze(2) ^ _mix(features_D ^ layer))
    kept_BLD = words_BLD >= int(probability * (1 << 32))
    return x_BLD * kept_BLD.to(x_BLD.dtype) / (1 - probability)


def _mix(words: Tensor) -> Tensor:
    """MurmurHash3's finaliser: every bit of 32-bit words, held as int64, depends on every other."""
    words = words ^ (words >> 16)
    words = (words * 0x85EBCA6B) & _WORD
    words = words ^ (words >> 13)
    words = (words * 0xC2B2AE35) & _WORD
    return words ^ (words >> 16)
