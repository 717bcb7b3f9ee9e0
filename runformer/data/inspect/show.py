"""Some records of a dataset in a terminal, as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from runformer.data import IGNORED
from runformer.data.inspect.facts import facts
from runformer.data.inspect.files import TokenColumns, open_dataset, token_columns
from runformer.data.inspect.tokens import as_numbers, as_text, kinds, visible
from runformer.data.records import Ids, Records
from runformer.errors import DataError
from runformer.tokenizer import Tokenizer

_FOLDED_RUN = 4  # so many equal tokens at the end are taken for padding, where nobody says what padding is
_ENDS = "actual_seq_len"  # the column that says where the documents of a row end
_VALUES_SHOWN = 8
_TEXT_SHOWN = 400


@dataclass(frozen=True, slots=True)
class Choice:
    """What to show: ``count`` records from ``first`` on; at most ``tokens`` of each (None: all).

    ``columns`` are those of tokens and labels; none given: the usual names. ``tokenizer`` turns ids into text.
    """

    first: int = 0
    count: int = 3
    tokens: int | None = 400
    columns: Sequence[str] = ()
    tokenizer: Tokenizer | None = None


def show(path: Path, choice: Choice, console: Console) -> None:
    """Print what a dataset's files say, and some of its records.

    Raises:
        DataError: a file is damaged, or has not so many records.
    """
    records = open_dataset(path)
    console.print(_line(str(path), style="bold"))
    _print_facts(records, console)
    if choice.first and choice.first >= len(records):
        raise DataError(f"{path} has records 0 to {len(records) - 1}, but --from asks for {choice.first}")
    columns = token_columns(records, choice.columns)
    for record in range(choice.first, min(choice.first + choice.count, len(records))):
        _print_record(records, record, columns, choice, console)


def _print_facts(records: Records, console: Console) -> None:
    lines, before = facts(records), None
    width = max(len(what) for what, _ in lines)
    for what, text in lines:
        name = what if what != before else ""
        console.print(_line(f"  {name:<{width}}  ", style="dim").append(visible(text), style="not dim"), soft_wrap=True)
        before = what


def _print_record(
    records: Records, record: int, columns: TokenColumns | None, choice: Choice, console: Console
) -> None:
    values = records.read_columns(record, list(records.column_names))
    console.print()
    head, place = _line(f"record {record:,}", style="bold"), records.describe(record)
    if place != f"record {record} of {records.name}":
        head.append(f"  {place}", style="dim")
    console.print(head, soft_wrap=True)
    if columns is not None:
        _print_tokens(values, columns, choice, console)
    shown = () if columns is None else columns.names
    for name, value in values.items():
        if name not in shown:
            console.print(_line(f"  {name}  ", style="cyan").append(_short(value), style="none"), soft_wrap=True)


def _print_tokens(values: Mapping[str, Any], columns: TokenColumns, choice: Choice, console: Console) -> None:
    tokens_T: Ids = np.asarray(values[columns.tokens])
    labels_T: Ids | None = None if columns.labels is None else np.asarray(values[columns.labels])
    pad = None if choice.tokenizer is None else choice.tokenizer.pad_id
    length = unpadded(tokens_T, pad)
    head = _line(f"  {columns.tokens}", style="cyan").append(f"  {tokens_T.dtype} {list(tokens_T.shape)}", style="none")
    if labels_T is not None:
        learnt = int((labels_T != IGNORED).sum())
        head.append(f"; in {columns.labels} {learnt:,} positions count, the others are grey")
    console.print(head, soft_wrap=True)
    labels_T = None if labels_T is None or labels_T.shape != tokens_T.shape else labels_T
    row = _Row(
        tokens_T, labels_T, [int(end) for end in np.asarray(values.get(_ENDS, ())).reshape(-1)], choice.tokenizer
    )
    text = _text(row, length, choice.tokens)
    if length < len(tokens_T):
        text.append(f" … ×{len(tokens_T) - length:,} padding", style="magenta")
    if console.is_terminal:
        console.print(Padding(text, (0, 0, 0, 4)))
    else:  # lines are those of the text
        console.print(text, soft_wrap=True)


def unpadded(tokens_T: Ids, pad: int | None) -> int:
    """How many tokens there are before the padding at the end; ``pad`` None: before a run of one id."""
    if not len(tokens_T):
        return 0
    others = np.flatnonzero(tokens_T != (tokens_T[-1] if pad is None else pad))
    length = int(others[-1]) + 1 if len(others) else 0
    return length if pad is not None or len(tokens_T) - length >= _FOLDED_RUN else len(tokens_T)


@dataclass(frozen=True, slots=True)
class _Row:
    """A record's tokens, their labels, and where its documents end."""

    tokens_T: Ids
    labels_T: Ids | None
    ends: Sequence[int]
    tokenizer: Tokenizer | None

    def text(self, begin: int, end: int, *, cut: bool) -> Text:
        """The tokens from ``begin`` to ``end``, with a bar between documents."""
        tokens_T = self.tokens_T[begin:end]
        labels_T = None if self.labels_T is None else self.labels_T[begin:end]
        ends = {place - begin for place in self.ends}
        stretches = kinds(labels_T, len(tokens_T), sorted(ends))
        if self.tokenizer is None:
            parts = as_numbers(tokens_T, stretches)
        else:
            parts = as_text(tokens_T, stretches, self.tokenizer, cut=cut)
        text = Text()
        for part, (first, _, _) in zip(parts, stretches, strict=True):
            if first in ends:
                text.append("│", style="magenta")
            text.append(part.text, style="none" if part.counts else "dim")
        return text


def _text(row: _Row, length: int, limit: int | None) -> Text:
    """All of the first ``length`` tokens, or the first and the last of these with their number between."""
    if limit is None or length <= limit:
        return row.text(0, length, cut=False)
    begin, end = limit - limit // 4, length - limit // 4
    first = row.text(0, begin, cut=True)
    first.append(f"\n… {end - begin:,} tokens …\n", style="magenta")
    return first + row.text(end, length, cut=True)


def _short(value: Any) -> str:
    """A value of another column: arrays by type, shape and their first elements, text by its beginning."""
    if isinstance(value, np.ndarray):
        flat = value.reshape(-1)
        more = " …" if flat.size > _VALUES_SHOWN else ""
        return f"{value.dtype} {list(value.shape)}  {' '.join(map(str, flat[:_VALUES_SHOWN].tolist()))}{more}"
    if isinstance(value, bytes):
        more = " …" if len(value) > _VALUES_SHOWN else ""
        return f"{len(value):,} bytes  {value[:_VALUES_SHOWN].hex(' ')}{more}"
    if isinstance(value, str):
        return visible(repr(value[:_TEXT_SHOWN])) + (
            f" … {len(value):,} characters" if len(value) > _TEXT_SHOWN else ""
        )
    return repr(value)


def _line(text: str, style: str) -> Text:
    return Text().append(text, style=style)
