"""What a user can see of a launch while it runs: the console, and ``status.json``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from runformer.launch.console import Console
from runformer.launch.options import LaunchOptions
from runformer.launch.status import StatusFile
from runformer.observe.log import write_stdout_line
from runformer.observe.progress import Progress
from runformer.observe.pulse import Stamp

_STATUS_SECONDS = 1.0


class Display:
    """Shows how the workers of this machine get on.

    Args:
        options: the launch.
        status: the status file.
        logs: workers' logs by global rank.
        node_rank: this machine's number.
    """

    def __init__(self, options: LaunchOptions, status: StatusFile, logs: Mapping[int, Path], node_rank: int) -> None:
        self._status = status
        self._stack = ExitStack()
        self._progress: Progress | None = None
        self._shown = 0
        self._attempt = -1
        self._next_status = 0.0
        self._console: Console | None = None
        if options.join:
            whole = (0,) if options.tail is None else tuple(logs) if options.tail == "all" else options.tail
            self._console = Console(logs, node_rank, whole, self._write_line)

    def tick(self, attempt: int, stamps: Mapping[int, Stamp]) -> None:
        """Show what is new.

        Args:
            attempt: the attempt that runs, from 0.
            stamps: where this machine's ranks are, by global rank.
        """
        if attempt != self._attempt:
            self._attempt = attempt
            self._close_progress()
            if self._console is not None:
                self._console.begin_attempt()
            self._status.update(state="running", attempt=attempt)
        furthest = max(stamps.values(), key=lambda stamp: stamp.done)
        if self._console is not None:
            self._console.show()
        if self._console is not None:
            self._show_progress(furthest)
        if furthest.total and time.monotonic() >= self._next_status:
            self._next_status = time.monotonic() + _STATUS_SECONDS
            self._status.update(step=furthest.done, total=furthest.total)

    def _show_progress(self, stamp: Stamp) -> None:
        if self._progress is None:
            if not stamp.total:
                return
            self._progress = self._stack.enter_context(Progress(stamp.total, stamp.done))
            self._shown = stamp.done
        if stamp.done > self._shown:
            self._progress.advance(stamp.loss, stamp.tokens_per_second, stamp.done - self._shown)
            self._shown = stamp.done

    def _write_line(self, line: str) -> None:
        """Print a line; where nobody reads any more, the job goes on without a console."""
        try:
            if self._progress is not None:
                self._progress.write_line(line)
            else:
                write_stdout_line(line)
        except OSError:
            self._console = None

    def _close_progress(self) -> None:
        self._stack.close()
        self._progress = None

    def close(self, stamps: Mapping[int, Stamp]) -> None:
        """Show the rest, and give the terminal back."""
        if self._console is not None:
            self._console.show(final=True)
        self._close_progress()
        furthest = max(stamps.values(), key=lambda stamp: stamp.done)
        if furthest.total:
            self._status.update(step=furthest.done, total=furthest.total)
