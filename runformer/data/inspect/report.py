"""The figures of a dataset, for people and for programs."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from runformer.data.inspect.figures import Figures

_BUCKETS = 12
_BAR = 40  # cells of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def as_json(figures: Figures) -> dict[str, Any]:
    """The figures under plain names; what is not known is None. Percentages are 0 to 100."""
    packing = figures.packing()
    return {
        "records": figures.records,
        "stored_tokens": figures.stored,
        "tokens": figures.tokens,
        "counted_tokens": figures.counted,
        "shortest": min(figures.lengths, default=0),
        "median": figures.quantile(0.5),
        "longest": max(figures.lengths, default=0),
        "mean": figures.tokens / figures.records if figures.records else 0.0,
        "empty": figures.empty,
        "longer_than_row": figures.too_long,
        "row_length": figures.row_length,
        "pad_token_id": figures.pad_token_id,
        "pad_token_id_guessed": figures.pad_guessed,
        "samples_run_on": figures.runs_on,
        "padding_percent": round(100 * figures.padding, 3),
        "smallest_id": figures.smallest,
        "largest_id": figures.largest,
        "distinct_ids": figures.distinct,
        "negative_ids": figures.negative,
        "ids_from_2_24": figures.beyond,
        "packing": None
        if packing is None
        else {
            "rows_before": packing.rows_before,
            "rows_after": packing.rows_after,
            "efficiency_before_percent": round(100 * packing.efficiency_before, 3),
            "efficiency_after_percent": round(100 * packing.efficiency_after, 3),
        },
        "lengths": {str(length): figures.lengths[length] for length in sorted(figures.lengths)},
    }


def as_text(figures: Figures) -> str:
    """The figures, and the lengths drawn."""
    longest = max(figures.lengths, default=0)
    lines = [
        ("records", f"{figures.records:,}" + (f", {figures.empty:,} of them empty" if figures.empty else "")),
        ("tokens", f"{figures.tokens:,} without padding, {figures.stored:,} with it"),
        ("counted", f"{figures.counted:,} in the loss{_share(figures.counted, figures.tokens)}"),
        ("lengths", f"{min(figures.lengths, default=0):,} to {longest:,}, median {figures.quantile(0.5):,}"),
        ("padding", _padding(figures)),
        ("ids", _ids(figures)),
    ]
    if figures.too_long:
        lines.append(
            ("too long", f"{figures.too_long:,} records have more than the {figures.row_length:,} tokens of a row")
        )
    lines.append(("packing", _packing(figures)))
    width = max(len(name) for name, _ in lines)
    text = [f"  {name:<{width}}  {value}" for name, value in lines]
    if figures.records:
        text += ["", "  tokens in a record", *(f"  {line}" for line in histogram(figures.lengths))]
    return "\n".join(text)


def _padding(figures: Figures) -> str:
    if figures.runs_on:
        return "none: samples run on from document to document"
    rows = "what is stored" if figures.row_length is None else f"rows of {figures.row_length:,} tokens"
    if figures.pad_token_id is None:
        source = "no id was taken for padding (--pad_token_id names one)"
    else:
        guessed = ", a guess by how records end (--pad_token_id sets it)" if figures.pad_guessed else ""
        source = f"padding is id {figures.pad_token_id}{guessed}"
    return f"{100 * figures.padding:.1f} % of {rows}; {source}"


def _ids(figures: Figures) -> str:
    if figures.largest is None:
        return "none"
    text = f"{figures.distinct:,} distinct, {figures.smallest} to {figures.largest}"
    if figures.negative:
        text += f"; {figures.negative:,} tokens are negative, which no vocabulary has"
    if figures.beyond:
        text += f"; {figures.beyond:,} tokens are {1 << 24:,} or more, which no vocabulary has"
    return text


def _packing(figures: Figures) -> str:
    packing = figures.packing()
    if packing is None:
        return (
            "there is nothing to pack" if not figures.tokens else "not worked out: --seq_length says how long rows are"
        )
    before = f"one record a row takes {packing.rows_before:,} rows ({100 * packing.efficiency_before:.1f} % tokens)"
    if packing.rows_after == packing.rows_before:
        return f"would save nothing: {before}"
    after = f"packed, {packing.rows_after:,} ({100 * packing.efficiency_after:.1f} %)"
    return f"{before}; {after}: {packing.rows_before / packing.rows_after:.2f} times fewer"


def _share(part: int, whole: int) -> str:
    return f" ({100 * part / whole:.1f} %)" if whole else ""


def histogram(lengths: Counter[int]) -> list[str]:
    """Bars of how many records have lengths within bounds of round numbers, a line each."""
    low, high = min(lengths), max(lengths)
    width = _round_width((high - low + 1) / _BUCKETS)
    first = low // width
    buckets = [0] * (high // width - first + 1)
    for length, count in lengths.items():
        buckets[length // width - first] += count
    most, total = max(buckets), sum(buckets)
    digits, count_digits = len(f"{(first + len(buckets)) * width - 1:,}"), len(f"{most:,}")
    return [
        f"{_bounds(begin * width, width, digits)}  {count:>{count_digits},} {100 * count / total:6.1f} %  "
        f"{bar(count / most)}".rstrip()
        for begin, count in enumerate(buckets, first)
    ]


def _bounds(begin: int, width: int, digits: int) -> str:
    if width == 1:
        return f"{begin:>{digits},}"
    return f"{begin:>{digits},} to {begin + width - 1:>{digits},}"


def bar(part: float) -> str:
    """A bar of up to forty cells, exact to an eighth of one; something is seen of anything above zero."""
    eighths = math.ceil(part * _BAR * 8)
    full, rest = divmod(eighths, 8)
    return (_EIGHTHS[8] * full + _EIGHTHS[rest]).rstrip()


def _round_width(least: float) -> int:
    """The least of 1, 2, 5, 10, 20, 50, … that is not under ``least``."""
    power = 1
    while True:
        for step in (1, 2, 5):
            if step * power >= least:
                return step * power
        power *= 10
