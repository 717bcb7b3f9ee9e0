"""Where each rank is: it stamps (step, phase, time) into memory that it shares with the launcher.

A stamp costs less than a microsecond, so that every phase of a step can have one. Without a launcher stamps go nowhere.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass
from functools import cache

VARIABLE = "RUNFORMER_PULSE"
"""Names the shared memory, as ``<path>:<slot>``."""

PHASES = (
    *("start", "join", "load", "meet"),
    *("data", "tokens", "forward", "backward", "loss", "update"),
    *("evaluate", "save", "end"),
)
"""The phases of a run, in the order in which it, and each of its steps, goes through them."""

COLLECTIVES = {
    "join": "the meeting of all ranks",
    "meet": "the comparison of all ranks' models",
    "tokens": "the count of tokens over all ranks",
    "backward": "the sum of gradients over all ranks",
    "loss": "the sum of losses over all ranks",
    "save": "the wait for rank 0's checkpoint",
    "end": "the end of all ranks",
}
"""Phases in which ranks wait for each other, and what for."""

SLOT_BYTES = 128
_STAMP = struct.Struct("<qd40s")
_FIGURES = struct.Struct("<qqdd?")
_FIGURES_OFFSET = 64


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a rank said last.

    Attributes:
        step: the step it is in, from 1; 0 before the first.
        phase: what it does there; empty: it has not stamped yet.
        time: seconds of the machine's monotonic clock.
        done: steps done.
        total: steps of the whole run.
        loss: of the last step.
        tokens_per_second: of the last step.
        saves_on_signal: it has a handler for SIGTERM that saves and leaves.
    """

    step: int
    phase: str
    time: float
    done: int
    total: int
    loss: float
    tokens_per_second: float
    saves_on_signal: bool


class Pulse:
    """One rank's slot in a shared memory; all slots' on the launcher's side.

    Args:
        memory: the shared memory.
        slot: which part of it is this rank's.
    """

    def __init__(self, memory: mmap.mmap | bytearray, slot: int = 0) -> None:
        self._memory = memory
        self._start = slot * SLOT_BYTES
        self._figures: list[int | float | bool] = [0, 0, 0.0, 0.0, False]

    def stamp(self, step: int, phase: str) -> None:
        """Say that this rank now does ``phase`` of ``step``."""
        _STAMP.pack_into(self._memory, self._start, step, time.monotonic(), phase.encode()[:40])

    def refresh(self) -> None:
        """Say that this rank gets on with what it said last."""
        struct.pack_into("<d", self._memory, self._start + 8, time.monotonic())

    def steps(self, done: int, total: int, loss: float = 0.0, tokens_per_second: float = 0.0) -> None:
        """Say how far the run is, for a progress bar."""
        self._figures[:4] = [done, total, loss, tokens_per_second]
        self._write_figures()

    def saves_on_signal(self, value: bool) -> None:
        """Say whether this process saves and leaves when it gets SIGTERM."""
        self._figures[4] = value
        self._write_figures()

    def _write_figures(self) -> None:
        _FIGURES.pack_into(self._memory, self._start + _FIGURES_OFFSET, *self._figures)

    def read(self) -> Stamp:
        """What was said last."""
        step, moment, phase = _STAMP.unpack_from(self._memory, self._start)
        done, total, loss, speed, saves = _FIGURES.unpack_from(self._memory, self._start + _FIGURES_OFFSET)
        return Stamp(step, phase.rstrip(b"\0").decode(errors="replace"), moment, done, total, loss, speed, saves)


@cache
def pulse() -> Pulse:
    """This process's pulse."""
    path, _, slot = os.environ.get(VARIABLE, "").rpartition(":")
    try:
        descriptor = os.open(path, os.O_RDWR)
        try:
            return Pulse(mmap.mmap(descriptor, 0), int(slot))
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return Pulse(bytearray(SLOT_BYTES))
