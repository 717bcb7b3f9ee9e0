"""For tests of preprocessing: a quiet run of it, and what it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runformer.data.mindrecord import MindRecordReader
from runformer.data.prepare.encode import Counts, Samples
from runformer.data.prepare.engine import prepare
from runformer.data.prepare.options import PrepareOptions
from runformer.data.prepare.report import Report
from runformer.tokenizer import Tokenizer


class Watcher:
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[Samples] = []
        self.consumed: list[int] = []
        self.size = 0

    def begins(self, size: int, consumed: int) -> None:
        self.size = size
        self.consumed.append(consumed)

    def encoded(self, consumed: int, counts: Counts) -> None:
        assert counts.bad <= counts.records
        self.consumed.append(consumed)

    def writes(self, done: int, total: int) -> None:
        assert 0 <= done <= total

    def shows(self, samples: Samples, tokenizer: Tokenizer) -> None:
        assert tokenizer.vocab_size
        self.shown.append(samples)

    def says(self, line: str) -> None:
        self.said.append(line)


def prepared(
    source: Path | str | Sequence[Path | str], target: Path, tokenizer: Path, length: int | None = 24, **options: Any
) -> Report:
    """Run it in this process, unless ``workers`` says otherwise."""
    inputs = [source] if isinstance(source, Path | str) else source
    options = {"workers": 1, "sequence_length": length, **options}
    watcher = options.pop("watcher", Watcher())
    return prepare(PrepareOptions(tuple(map(str, inputs)), target, tokenizer, **options), watcher)


def rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a MindRecord file."""
    with MindRecordReader(path) as reader:
        return [reader[number] for number in range(len(reader))]


def spoken(tokenizer: Tokenizer, ids: Any) -> str:
    """The text of the ids that are no -100."""
    return tokenizer.decode([int(token) for token in np.asarray(ids) if token != -100], skip_special_tokens=False)


def same_files(first: Path, second: Path) -> bool:
    """Whether two files hold the same bytes."""
    return first.read_bytes() == second.read_bytes()
