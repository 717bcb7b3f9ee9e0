"""What went wrong with one rank, and which of several failures was the first cause."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["exit", "signal", "stopped", "left", "hang", "lost"]

PREEMPTED, CONFIG_ERROR, DO_NOT_REQUEUE, TIMEOUT = 75, 78, 93, 124
"""Exit codes: left with a checkpoint; starting again cannot help; must not be started again; too late."""

_TAIL_LINES, _TAIL_BYTES = 5, 1 << 14

_NOISE = re.compile(r"\[W\d+ .*socket\.cpp:\d+\] ")
"""Torch's warnings about names of hosts that cannot be looked up: no names are needed."""

_ECHO_TYPES = frozenset({"DistBackendError", "DistNetworkError", "DistStoreError"})
_ECHO_TEXT = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|socket (timeout|closed)|"
    r"timed out (waiting|after)|gloo/|nccl(communicator|.*(watchdog|remote process exited|unhandled system error))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """One rank's failure.

    Attributes:
        rank: the global rank; None: a whole machine.
        node_rank: its machine's number.
        host: its machine's name or address.
        kind: it exited, a signal ended it, it stands still, it left before others were done, it hangs, its machine was
            lost.
        exit_code: as a shell gives it: 128 + n for the signal n.
        time: seconds since 1970, of its machine's clock.
        place: what it was doing, from its last stamp ("step 12, forward"); empty: unknown.
        message: the error in its own words; empty: it left none.
        frame: the last line of the user's or our code on the error's way.
        hint: what to do about it.
        echo: it only tells that another rank was gone.
        log: the file with its output.
        tail: the last lines of that.
    """

    rank: int | None
    node_rank: int
    host: str
    kind: Kind
    exit_code: int
    time: float
    place: str = ""
    message: str = ""
    frame: str = ""
    hint: str = ""
    echo: bool = False
    log: str = ""
    tail: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """It as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Failure:
        """The reverse of ``to_json``; unknown keys, of a later version, are left out."""
        known = {key: value for key, value in values.items() if key in cls.__slots__}
        return cls(**known | {"tail": tuple(values.get("tail", ()))})

    @property
    def restartable(self) -> bool:
        """Whether starting again could help; a machine that is gone does not come back."""
        return self.kind != "lost" and self.exit_code not in (CONFIG_ERROR, DO_NOT_REQUEUE)


def root_cause(failures: Sequence[Failure]) -> Failure:
    """The first of those that are not echoes of another; where all are, the first echo."""
    return min(failures, key=lambda failure: (failure.echo, failure.time))


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """What a worker wrote into its error file."""

    message: str = ""
    frame: str = ""
    hint: str = ""
    time: float | None = None
    echo: bool = False


def read_error(path: Path) -> ErrorReport:
    """What the error file says; an empty report where there is none, or it is not whole."""
    try:
        content = json.loads(path.read_text())["message"]
        if isinstance(content, str):
            return ErrorReport(content, echo=_is_echo("", content))
        extra = content["extraInfo"]
        message = str(content["message"])
        moment = extra.get("time", extra.get("timestamp"))
        return ErrorReport(
            message,
            extra.get("frame") or "",
            extra.get("hint") or "",
            None if moment is None else float(moment),
            _is_echo(str(extra.get("type", "")), message),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ErrorReport()


def _is_echo(kind: str, message: str) -> bool:
    return kind in _ECHO_TYPES or _ECHO_TEXT.search(message) is not None


def last_lines(path: Path, lines: int = _TAIL_LINES) -> tuple[str, ...]:
    """The last lines of a log that say something; of a crash in C where that was, innermost first.

    A traceback at the end is left out: the error file tells more shortly what it says.
    """
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
            file.seek(start)
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    said = [line.rstrip() for line in text.splitlines() if line.strip() and not _NOISE.match(line)]
    crash = _last_with(said, "Fatal Python error: ")
    if crash is not None:
        frames = [line for line in said[crash:] if line.startswith("  File ")]
        return (said[crash], *frames[: lines - 1])
    end = _last_with(said, "Traceback (most recent call last)")
    return tuple(said[:end][-lines:])


def _last_with(lines: Sequence[str], beginning: str) -> int | None:
    found = [number for number, line in enumerate(lines) if line.startswith(beginning)]
    return found[-1] if found else None


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
