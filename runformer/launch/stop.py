"""Signals to the launcher that ask it to end the job."""

from __future__ import annotations

import signal
import time
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class StopRequest:
    """Takes note of the first such signal, and of how long the workers may still take; a second one ends their time.

    Attributes:
        signal: what the launcher got; 0: nothing yet.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._deadline: float | None = None
        self._insisted = False

    def install(self) -> None:
        """Handle these signals from now on; one that is ignored (nohup) stays ignored."""
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal:
            self._insisted = True
        else:
            self.signal = number

    def grant(self, seconds: float) -> None:
        """Give the workers so long from now."""
        self._deadline = time.monotonic() + seconds

    def is_over(self, now: float) -> bool:
        """Whether the workers' time is over."""
        return self._insisted or (self._deadline is not None and now >= self._deadline)
