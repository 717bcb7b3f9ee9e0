"""Which documents share a row: best-fit decreasing, so that few tokens are padding and no document is cut.

"Fewer Truncations Improve Language Modeling" (arXiv:2404.10830) measures what that does for training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

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


def count_rows(lengths: Mapping[int, int], capacity: int) -> int:
    """How many rows ``best_fit`` makes of so many documents of each length, in little time and memory.

    Args:
        lengths: tokens of a document → how many documents have them.
        capacity: tokens of a row.

    Raises:
        ValueError: a document is empty or longer than a row.
    """
    if lengths and not 1 <= min(lengths) <= max(lengths) <= capacity:
        raise ValueError(f"documents have {min(lengths)} to {max(lengths)} tokens, not 1 to {capacity}")
    rows = 0
    with_room: Counter[int] = Counter()  # tokens that still fit → how many rows
    for size in sorted(lengths, reverse=True):
        left = lengths[size]
        for room in sorted(room for room in with_room if room >= size):
            left -= _fill(with_room, room, min(with_room[room], -(-left // (room // size))), size, left)
            if left == 0:
                break
        if left:
            new = -(-left // (capacity // size))
            rows += new
            with_room[capacity] += new
            _fill(with_room, capacity, new, size, left)
    return rows


def _fill(with_room: Counter[int], room: int, rows: int, size: int, documents: int) -> int:
    """Put documents of one size into some of the rows with this room, one row after another; how many went in."""
    each = room // size
    full, rest = divmod(min(documents, rows * each), each)
    with_room[room] -= full + (rest > 0)
    with_room[room - each * size] += full
    if rest:
        with_room[room - rest * size] += 1
    for gone in (room, 0):
        if not with_room[gone] or not gone:
            del with_room[gone]
    return full * each + rest
