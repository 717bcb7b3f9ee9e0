"""Which attention heads each of several processes computes."""

from __future__ import annotations

from dataclasses import dataclass

from runformer.models.part import Span, even_spans


@dataclass(frozen=True, slots=True)
class Heads:
    """One process's share.

    Attributes:
        query: its query heads.
        key_value: the key-value heads that those read; neighbours may have one of them, too.
        owned: which of these it answers for.
        reads: for each of its query heads the number, among its key-value heads, of the one it reads; None where each
            key-value head is read by as many query heads as another, one after the other.
    """

    query: Span
    key_value: Span
    owned: Span
    reads: tuple[int, ...] | None


def share_heads(heads: int, kv_heads: int, count: int) -> list[Heads]:
    """Share heads out over ``count`` processes.

    Cuts are along groups of heads that read the same key-value head as far as numbers allow it: whole groups where
    there are enough of them, equal numbers of processes for each group where those divide, and else wherever the
    numbers of heads are most equal. 14 heads on 2 give 4, 3, 4, 3 for 4 processes.

    Args:
        heads: query heads, at least ``count``.
        kv_heads: key-value heads, a divisor of that.
        count: processes.
    """
    group = heads // kv_heads
    if count % kv_heads == 0:
        within = even_spans(group, count // kv_heads)
        query = [(first * group + begin, first * group + end) for first in range(kv_heads) for begin, end in within]
    elif kv_heads % count == 0:
        query = [(begin * group, end * group) for begin, end in even_spans(kv_heads, count)]
    else:
        query = even_spans(heads, count)
    shares, answered_for = [], 0
    for begin, end in query:
        key_value = (begin // group, (end - 1) // group + 1)
        owned = (max(key_value[0], answered_for), max(key_value[1], answered_for))
        answered_for = owned[1]
        shares.append(Heads((begin, end), key_value, owned, _reads((begin, end), key_value, group)))
    return shares


def _reads(query: Span, key_value: Span, group: int) -> tuple[int, ...] | None:
    reads = tuple(head // group - key_value[0] for head in range(*query))
    each, rest = divmod(len(reads), key_value[1] - key_value[0])
    regular = rest == 0 and reads == tuple(place // each for place in range(len(reads)))
    return None if regular else reads
