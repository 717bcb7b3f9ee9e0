"""Long texts in stretches: the same ids as of the whole, in a small part of the memory.

The tokenizers library takes some 140 bytes a byte of text, and more than twice the time a byte, where a text is long.
A text may be cut where the ids beside the cut do not change, and that is tried at line ends, then at spaces and
commas, before it is done.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

_TRIES = 20
_GIVE_UP = 8  # places in a row without a cut
_WINDOW = 200  # characters on each side of a cut that are looked at
_GAPS = (re.compile(r"\n"), re.compile(r"[\s。，、；！？]"))

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a text, without the first ``skip`` of its ids: SentencePiece begins every text with a space."""

    text: str
    skip: int = 0


def cut_long(text: str, size: int, encode: Encode) -> list[Stretch]:
    """A text in stretches of about ``size`` characters whose ids, one after the other, are those of the text.

    ``encode`` adds no special tokens. Where no cut leaves the ids alone, a stretch is longer, and may be all the rest.
    """
    stretches, begin, skip, look, failed = [], 0, 0, size, 0
    while len(text) - look > size // 4 and failed < _GIVE_UP:
        found = _cut_between(text, look, look + size // 4, encode)
        if found is None:
            look, failed = look + size // 4, failed + 1
            continue
        end, next_skip = found
        stretches.append(Stretch(text[begin:end], skip))
        begin, skip, look, failed = end, next_skip, end + size, 0
    return [*stretches, Stretch(text[begin:], skip)]


def _cut_between(text: str, first: int, last: int, encode: Encode) -> tuple[int, int] | None:
    """The first place there where a cut does no harm, and how many ids the text behind it gains."""
    for gap in _GAPS:
        for found in islice(gap.finditer(text, first, last), _TRIES):
            for cut in (found.end(), found.start()):
                skip = _harmless(text[max(0, cut - _WINDOW) : cut], text[cut : cut + _WINDOW], encode)
                if skip is not None:
                    return cut, skip
    return None


def _harmless(before: str, behind: str, encode: Encode) -> int | None:
    whole, first, second = encode(before + behind), encode(before), encode(behind)
    skip = len(first) + len(second) - len(whole)
    return skip if 0 <= skip <= len(second) and whole == first + second[skip:] else None
