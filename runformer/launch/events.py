"""``events.jsonl``: what happened to a job, one line an event, for programs and for ``msrun report``.

Every line has ``v`` (the version of the schema), ``time`` (seconds since 1970), ``event`` and ``node_rank``. Events:

- ``start``: ``command``, ``world_size``, ``local_world_size``, ``host``, ``pid``, ``versions``;
- ``cluster``: all machines have come: ``attempt``, ``hosts``;
- ``worker_start``: ``attempt``, ``rank``, ``pid``, ``log``;
- ``worker_end``: ``attempt``, ``rank``, ``pid``, ``exit_code``, ``signal``, ``stopped``;
- ``failure``: one rank's failure as the agent understood it (the fields of ``Failure``);
- ``signal``: the launcher was told to end the job: ``signal``;
- ``verdict``: ``attempt``, ``outcome``, ``cause`` (a failure, or null), ``others`` (how many more failed);
- ``end``: ``outcome``, ``exit_code``, ``seconds``.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runformer.errors import LaunchError

VERSION = 1
FILE_NAME = "events.jsonl"


class EventLog:
    """Appends events to a file; a full disk does not end the job.

    Args:
        path: the file.
        node_rank: this machine's number.
    """

    def __init__(self, path: Path, node_rank: int) -> None:
        self.node_rank = node_rank
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event, whole: several machines may write the same file."""
        row = {"v": VERSION, "time": round(time.time(), 3), "event": event, "node_rank": self.node_rank} | fields
        with contextlib.suppress(OSError):
            os.write(self._file, json.dumps(row).encode() + b"\n")


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a file in their order; a line that a crash cut off is left out.

    Raises:
        LaunchError: the file cannot be read, or is of a later version.
    """
    try:
        with path.open("rb") as file:
            events = list(_parse(file))
    except OSError as error:
        raise LaunchError(f"cannot read {path}: {error.strerror}", hint="give the LOG_DIR of a launch") from error
    if any(event["v"] > VERSION for event in events):
        raise LaunchError(f"{path} was written by a later version of this program")
    return events


def _parse(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("v"), int) and isinstance(event.get("event"), str):
                yield event
