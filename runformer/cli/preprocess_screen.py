"""What a person sees of preprocessing: a bar with speed and time left on a terminal, and samples."""

from __future__ import annotations

import sys
import time
from itertools import groupby
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from runformer.data.prepare.encode import Counts, Samples
    from runformer.tokenizer import Tokenizer


class Screen:
    """The watcher of a run, used as a context manager. Off a terminal there is no bar.

    Args:
        show: samples to show.
    """

    def __init__(self, show: int) -> None:
        self._show = show
        self._bar: Progress | None = None
        self._reading: TaskID | None = None
        self._writing: TaskID | None = None
        self._begun = 0.0
        self._tokens = self._records = 0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = _make_bar()
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def begins(self, size: int, consumed: int) -> None:
        """See ``engine.Watcher``; so are the others."""
        self._begun = time.monotonic()
        if self._bar is not None:
            self._reading = self._bar.add_task("encoding", total=size, completed=consumed, figures="")

    def encoded(self, consumed: int, counts: Counts) -> None:
        """Move the bar."""
        self._tokens += counts.tokens
        self._records += counts.records
        if self._bar is not None and self._reading is not None:
            seconds = max(1e-3, time.monotonic() - self._begun)
            figures = f"{self._tokens / seconds:,.0f} tokens/s  {self._records / seconds:,.0f} records/s"
            self._bar.update(self._reading, completed=consumed, figures=figures)

    def writes(self, done: int, total: int) -> None:
        """Show a second bar."""
        if self._bar is None:
            return
        if self._writing is None:
            self._writing = self._bar.add_task("writing", total=total, figures="")
        self._bar.update(self._writing, completed=done)

    def says(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            print(line, file=sys.stderr)
        else:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def shows(self, samples: Samples, tokenizer: Tokenizer) -> None:
        """Print the first samples: grey is what is not learnt; off a terminal, what is learnt stands in ⟦ ⟧."""
        from rich.console import Console
        from rich.text import Text

        # Over the bar it has to be the bar's own; standard output may lead elsewhere.
        over_bar = self._bar is not None and sys.stdout.isatty()
        console = self._bar.console if self._bar and over_bar else Console(highlight=False)
        coloured = console.is_terminal and not console.is_dumb_terminal
        end = 0
        for number, length in enumerate(samples.lengths[: self._show].tolist(), start=1):
            begin, end = end, end + length
            text = Text()
            for learnt, group in groupby(range(begin, end), key=lambda place: bool(samples.learnt[place])):
                ids = [int(samples.tokens[place]) for place in group]
                words = tokenizer.decode(ids, skip_special_tokens=False)
                if coloured:
                    text.append(words, style="" if learnt else "bright_black")
                else:
                    text.append(f"⟦{words}⟧" if learnt else words)
            learnt_count = int(samples.learnt[begin:end].sum())
            console.print(
                f"── sample {number}: {length} tokens, {learnt_count} of them learnt", style="bold", highlight=False
            )
            console.print(text, soft_wrap=True)
        key = "grey: not learnt" if coloured else "⟦ ⟧: learnt"
        console.print(f"── {key}", style="bold")


def _make_bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stderr)
    return Progress(
        TextColumn("{task.description}"),
        TaskProgressColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console.is_dumb_terminal,
        refresh_per_second=4,
        transient=True,
    )
