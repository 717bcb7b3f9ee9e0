"""Token ids for reading: as numbers or as text, in the parts that count and those that do not.

Shapes: T tokens of a record.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from runformer.data import IGNORED
from runformer.data.records import Ids
from runformer.tokenizer import Tokenizer

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what decoding gives for the first bytes of a character whose others follow


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring tokens of one kind, as text; ``counts`` tells whether they are learnt."""

    text: str
    counts: bool


def kinds(labels_T: Ids | None, length: int, ends: Sequence[int] = ()) -> list[tuple[int, int, bool]]:
    """The stretches of the first ``length`` positions: (begin, end, whether their labels count).

    ``ends`` are those of documents; none is in two of them.
    """
    counts_T = np.ones(length, dtype=bool) if labels_T is None else labels_T[:length] != IGNORED
    changes = np.flatnonzero(counts_T[1:] != counts_T[:-1]) + 1
    bounds = sorted({0, length, *changes.tolist(), *(end for end in ends if 0 < end < length)})
    return [(begin, end, bool(counts_T[begin])) for begin, end in pairwise(bounds)]


def as_numbers(tokens_T: Ids, stretches: Sequence[tuple[int, int, bool]]) -> list[Part]:
    """The ids themselves."""
    return [Part("".join(f"{token} " for token in tokens_T[begin:end].tolist()), c) for begin, end, c in stretches]


def as_text(
    tokens_T: Ids, stretches: Sequence[tuple[int, int, bool]], tokenizer: Tokenizer, *, cut: bool = False
) -> list[Part]:
    """What the ids say. A character whose bytes lie in two stretches belongs to the later one.

    ``cut`` tells that there are more tokens around these: half a character at an end is left out. Each stretch is
    decoded together with all before it: some tokenizers drop the space at the beginning of a text.
    """
    ids = [token if 0 <= token < tokenizer.vocab_size else -1 for token in tokens_T.tolist()]
    parts, before = [], ""
    for begin, end, counts in stretches:
        known = [token for token in ids[:end] if token >= 0]
        text = tokenizer.decode(known, skip_special_tokens=False)
        if cut:
            text = text.lstrip(_BROKEN)
        if cut or end < len(ids):
            text = text.rstrip(_BROKEN)
        shared = len(before) if text.startswith(before) else _common(before, text)
        unknown = sum(token < 0 for token in ids[begin:end])
        parts.append(Part(visible(text[shared:]) + (f"⟨{unknown} unknown ids⟩" if unknown else ""), counts))
        before = text
    return parts


def _common(one: str, other: str) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def visible(text: str) -> str:
    """Text that does nothing to a terminal: control characters but line ends and tabs become pictures or U+FFFD."""
    return "".join(_visible(letter) for letter in text)


def _visible(letter: str) -> str:
    if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs"):
        return letter
    if letter < " ":
        return chr(0x2400 + ord(letter))  # the block of control pictures is in ASCII's order
    # Joiners belong to words and emoji; what turns the direction of text does not belong in a listing.
    return letter if letter in "\u200c\u200d" else _BROKEN
