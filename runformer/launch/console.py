"""What a launcher that stays shows of its workers: rank 0 whole, of the others what is wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

_ALARM = re.compile(
    r"\b(WARNING|ERROR|CRITICAL|FATAL)\b|^(error|warning): |^Traceback \(|^Fatal Python error|Warning: "
)
_VARYING = re.compile(r"^\[?\d{4}-\d\d-\d\d[ T][\d:,.]+\]?\s*(-\s*)?|\b(rank|worker)_\d+\b|\[[\d.:]+\]:\d+")
"""What differs between ranks that say the same: times, names of their own, addresses of their peers."""
_COLLECT_SECONDS = 0.3
_LONGEST_TRACEBACK = 60
_CHUNK = 1 << 16


class Tail:
    """The lines that a growing file has got since the last look; a line without its end is left for the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._rest = b""

    def lines(self, *, final: bool = False) -> list[str]:
        """The new lines; with ``final`` the one that was not ended too."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                data = self._rest + file.read()
                self._position = file.tell()
        except OSError:
            return []
        whole, newline, self._rest = data.rpartition(b"\n")
        if final:
            whole, newline, self._rest = data, b"", b""
        return (whole + newline).decode(errors="replace").splitlines()


class AlarmFilter:
    """Picks out what tells of something wrong: single lines, and tracebacks as one text."""

    def __init__(self) -> None:
        self._traceback: list[str] = []

    def __call__(self, line: str) -> str | None:
        """What to show now that this line has come; None: nothing (yet)."""
        if self._traceback:
            self._traceback.append(line)
            # A traceback ends with the first line that is not indented: the error itself.
            return None if line.startswith(" ") and len(self._traceback) < _LONGEST_TRACEBACK else self.rest()
        if line.startswith("Traceback ("):
            self._traceback = [line]
            return None
        return line if _ALARM.search(line) else None

    def rest(self) -> str | None:
        """The traceback that has not come to its end."""
        text = "\n".join(self._traceback)
        self._traceback = []
        return text or None


class Console:
    """Shows workers' logs as they grow.

    Args:
        logs: this machine's by global rank.
        node_rank: this machine's number, for the prefix of a line.
        whole: the ranks whose whole output is shown; of the others only warnings and errors are.
        write_line: what prints a line.
    """

    def __init__(
        self, logs: Mapping[int, Path], node_rank: int, whole: Iterable[int], write_line: Callable[[str], None]
    ) -> None:
        self._logs = logs
        self._node_rank = node_rank
        self._whole = set(whole) & logs.keys()
        self._prefixed = self._whole != {0}
        self._write_line = write_line
        self._waiting: dict[str, tuple[float, str, list[int]]] = {}
        self.begin_attempt()

    def begin_attempt(self) -> None:
        """Read the logs from their beginnings."""
        self._tails = {rank: Tail(path) for rank, path in self._logs.items()}
        self._filters = {rank: AlarmFilter() for rank in self._logs}

    def show(self, *, final: bool = False) -> None:
        """Print what is new; with ``final`` all of it."""
        for rank, tail in self._tails.items():
            for line in tail.lines(final=final):
                if rank in self._whole:
                    self._write_line(f"{self._node_rank}:{rank}: {line}" if self._prefixed else line)
                elif (text := self._filters[rank](line)) is not None:
                    self._hold(rank, text)
            if final and (text := self._filters[rank].rest()) is not None:
                self._hold(rank, text)
        self._release(time.monotonic() - (0 if final else _COLLECT_SECONDS))

    def _hold(self, rank: int, text: str) -> None:
        """Keep a text for a moment: the same may come from other ranks."""
        key = _VARYING.sub("", text)
        self._waiting.setdefault(key, (time.monotonic(), text, []))[2].append(rank)

    def _release(self, before: float) -> None:
        for key, (since, text, ranks) in list(self._waiting.items()):
            if since <= before:
                del self._waiting[key]
                same = len(set(ranks))
                who = f"{self._node_rank}:{ranks[0]}" + (f" and {same - 1} more" if same > 1 else "")
                for line in text.splitlines():
                    self._write_line(f"{who}: {line}")
