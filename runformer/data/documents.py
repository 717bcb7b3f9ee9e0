"""Where the documents of a row begin and end.

Shapes: B rows, L positions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Ids = NDArray[np.int64]


def ends_at(inputs_BL: Ids, eod: int) -> Flags:
    """Documents end behind each token ``eod``, which still belongs to its own."""
    ends_BL: Flags = inputs_BL == eod
    return ends_BL


def ends_of(ends: NDArray[np.integer], length: int, tokens: int) -> Flags:
    """Documents end behind so many tokens of a row each: bool, (length,).

    Args:
        ends: growing numbers up to ``length``, or ``tokens``: then the last token is nothing but a label. What comes
            behind the last of them is a document of its own.
        length: L.
        tokens: of the stored row.

    Raises:
        ValueError: they do not grow, or go beyond the row.
    """
    places = ends.astype(np.int64)
    if places.ndim != 1 or bool((np.diff(places, prepend=0) <= 0).any()):
        raise ValueError(f"is {ends.tolist()[:8]}, which does not grow from document to document")
    if places.size and int(places[-1]) > tokens:
        raise ValueError(f"ends at {int(places[-1])}, but the row has {tokens} tokens")
    ends_L = np.zeros(length, dtype=bool)
    ends_L[places[places <= length] - 1] = True
    return ends_L


def places_in(ends_BL: Flags) -> tuple[NDArray[np.int32], Ids]:
    """The number of the document that each position is in, int32, and its place in that, int64: (B, L) each."""
    begins_BL = np.zeros_like(ends_BL)
    begins_BL[:, 1:] = ends_BL[:, :-1]
    numbers_BL = np.cumsum(begins_BL, axis=1, dtype=np.int32)
    columns_L = np.arange(ends_BL.shape[1], dtype=np.int64)
    begin_BL = np.maximum.accumulate(np.where(begins_BL, columns_L, 0), axis=1)
    return numbers_BL, columns_L - begin_BL
