"""Which documents share a row: best-fit decreasing, so that few tokens are padding and no document is cut.

"Fewer Truncations Improve Language Modeling" (arXiv:2404.10830) measures what that does for training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def best_fit(lengths: Sequence[int] | NDArray[np.integer], capacity: int) -> list[list[int]]:
    """Rows of document numbers, each with lengths that add up to ``capacity`` at most.

    The longest document comes first, into the fullest row that has room for it. Of documents with the same length the
    first one does, so the result hangs on nothing but the lengths. Rows are in the order of their first documents, and
    documents within a row in their own.

    Args:
        lengths: tokens of each document.
        capacity: tokens of a row.

    Raises:
        ValueError: a document is empty or longer than a row.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and not 1 <= int(sizes.min()) <= int(sizes.max()) <= capacity:
        raise ValueError(f"documents have {int(sizes.min())} to {int(sizes.max())} tokens, not 1 to {capacity}")
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # tokens that still fit → the rows
    rooms = 0  # bit n is set where with_room[n] is: the least room that suffices is found by a shift
    for document in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[document])
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(document)
        left = room - size
        if left:
            with_room.setdefault(left, []).append(row)
            rooms |= 1 << left
    return sorted(map(sorted, rows))
