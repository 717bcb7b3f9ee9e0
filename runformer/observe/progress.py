"""A progress bar under the log lines of a terminal; elsewhere the log lines alone show the progress."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from runformer.observe.log import LOGGER_NAME, ConsoleHandler, write_stdout_line

if TYPE_CHECKING:
    from rich import progress as rich_progress

_REFRESHES_PER_SECOND = 4


class Progress:
    """A bar over the optimizer steps of a run, used as a context manager.

    Args:
        total_steps: steps of the whole run.
        initial_step: steps done before, by the run that this one resumes.
        enabled: False shows none; True shows one where standard output is a terminal.
    """

    def __init__(self, total_steps: int, initial_step: int = 0, enabled: bool = True) -> None:
        self._total_steps = total_steps
        self._initial_step = initial_step
        self._enabled = enabled
        self._bar: rich_progress.Progress | None = None
        self._task: rich_progress.TaskID | None = None

    def __enter__(self) -> Self:
        if self._enabled and sys.stdout.isatty():
            self._bar = _make_bar()
            self._task = self._bar.add_task("", total=self._total_steps, completed=self._initial_step, figures="")
            self._bar.start()
            for handler in _console_handlers():
                handler.write_line = self.write_line
        return self

    def advance(self, loss: float, tokens_per_second: float, steps: int = 1) -> None:
        """Show more steps, with the loss and the speed of the last one."""
        if self._bar is not None and self._task is not None:
            figures = f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s"
            self._bar.update(self._task, advance=steps, figures=figures)

    def write_line(self, line: str) -> None:
        """Print a line above the bar, unwrapped: a loss line stays one line for who copies it."""
        if self._bar is None:
            write_stdout_line(line)
        else:
            self._bar.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            for handler in _console_handlers():
                handler.write_line = write_stdout_line
            self._bar.stop()
            self._bar = None


def _make_bar() -> rich_progress.Progress:
    # rich takes a tenth of a second to import: too much for runs that show no bar.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stdout)
    return Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console.is_dumb_terminal,
        refresh_per_second=_REFRESHES_PER_SECOND,
        redirect_stderr=sys.stderr.isatty(),
    )


def _console_handlers() -> list[ConsoleHandler]:
    handlers = logging.getLogger(LOGGER_NAME).handlers
    return [handler for handler in handlers if isinstance(handler, ConsoleHandler)]
