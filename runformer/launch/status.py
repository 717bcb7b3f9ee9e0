"""``status.json``: how a launch stands, for whoever did not stay to watch."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from runformer.errors import LaunchError

State = Literal["waiting", "running", "succeeded", "failed", "preempted", "stopped"]

VERSION = 1
ENDED = ("succeeded", "failed", "preempted", "stopped")
_PATTERN = "status*.json"


@dataclass(frozen=True, slots=True)
class Status:
    """How one machine's part of a launch stands.

    Attributes:
        state: ``waiting`` for other machines, ``running``, or how it ended.
        pid: the launcher's process.
        started: when that process was made, in seconds since 1970: the same pid later is another process.
        host: the machine's name.
        node_rank: its number.
        world_size: workers on all machines.
        command: what they run.
        attempt: which attempt runs, from 0.
        step: steps done, as far as the workers say; 0 where they do not.
        total: steps of the whole run.
        exit_code: the launcher's; None while it runs.
        summary: how it ended, in lines for a person.
        updated: when this was written, in seconds since 1970.
        v: version of this schema.
    """

    state: State
    pid: int
    started: float
    host: str
    node_rank: int
    world_size: int
    command: str
    attempt: int = 0
    step: int = 0
    total: int = 0
    exit_code: int | None = None
    summary: tuple[str, ...] = ()
    updated: float = 0
    v: int = VERSION

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in ENDED

    @property
    def is_alive(self) -> bool:
        """Whether its launcher runs, on this machine."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1
        except psutil.Error:
            return False


class StatusFile:
    """Keeps a status on disk; each version replaces the one before in one step.

    Args:
        path: the file.
        status: the first status.
    """

    def __init__(self, path: Path, status: Status) -> None:
        self._path = path
        self.status = status
        self._write()

    def update(self, **fields: Any) -> None:
        """Change some fields; what is as it was is not written again."""
        changed = replace(self.status, **fields)
        if changed != self.status:
            self.status = changed
            self._write()

    def _write(self) -> None:
        staged = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        content = asdict(replace(self.status, updated=round(time.time(), 3)))
        with contextlib.suppress(OSError):  # a full disk does not end the job
            staged.write_text(json.dumps(content, indent=1) + "\n")
            staged.replace(self._path)


def read_status(path: Path) -> Status:
    """One machine's status.

    Raises:
        LaunchError: the file cannot be read.
    """
    try:
        values = json.loads(path.read_text())
        known = {key: value for key, value in values.items() if key in Status.__slots__}
        return Status(**known | {"summary": tuple(values.get("summary", ()))})
    except OSError as error:
        raise LaunchError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise LaunchError(f"{path} is not the status of a launch: {error}") from error


def read_all(log_dir: Path) -> list[Status]:
    """The status of every machine that writes to this LOG_DIR, by node rank.

    Raises:
        LaunchError: there is none.
    """
    found = [read_status(path) for path in sorted(log_dir.glob(_PATTERN))]
    if not found:
        raise LaunchError(f"{log_dir}: nothing was launched with this LOG_DIR", hint="it has no status.json")
    return sorted(found, key=lambda status: status.node_rank)
