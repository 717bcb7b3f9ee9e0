"""Being told to end: SIGTERM or SIGUSR1, from a batch system that wants the machine back or from a launcher."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from runformer.observe.pulse import pulse

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Takes note of the first such signal while it is entered; a second one does what it did before.

    Attributes:
        came: whether one came.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        pulse().saves_on_signal(True)
        return self

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        pulse().saves_on_signal(False)
