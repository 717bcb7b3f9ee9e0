"""A progress bar for work that is counted, on standard error: what a command prints stays clean."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A function to be called with how many more of ``total`` are done.

    Nothing is shown where standard error is no terminal. The bar is gone when the ``with`` block is left.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    # rich takes a tenth of a second to import: too much where nothing is shown.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
