"""The files of a launch: where they are, and what becomes of those of an earlier one.

::

    LOG_DIR/scheduler.log        the agent's own records (of the machine with node rank k > 0: scheduler_<k>.log)
            worker_<rank>.log    what each worker printed
            events.jsonl         what happened, for programs (events_<k>.jsonl)
            status.json          how it stands (status_<k>.json)
            errors/              what workers left of the errors that ended them, and their stacks
            attempt_<n>/         logs of attempts before the last one
            job_<n>/             all of this, of earlier launches
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runformer.errors import LaunchError
from runformer.launch.events import FILE_NAME as EVENTS

_OWNER_ONLY = 0o700  # as the original makes it: logs may hold what a command line held


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one machine's part in a launch.

    Attributes:
        root: LOG_DIR.
        suffix: what the names of the machine's own files end in; empty for the one with node rank 0.
        worker_name: what workers' logs are called before their rank; may hold ``{ip}`` and ``{hostname}``.
        address: this machine's address.
    """

    root: Path
    suffix: str = ""
    worker_name: str = ""
    address: str = ""

    @property
    def agent_log(self) -> Path:
        """The agent's records."""
        return self.root / f"scheduler{self.suffix}.log"

    @property
    def events(self) -> Path:
        """What happened."""
        return self._own(EVENTS)

    @property
    def status(self) -> Path:
        """How the launch stands."""
        return self._own("status.json")

    def _own(self, name: str) -> Path:
        path = self.root / name
        return path.with_stem(path.stem + self.suffix)

    def worker_log(self, rank: int) -> Path:
        """What one worker prints."""
        name = self.worker_name.replace("{ip}", self.address).replace("{hostname}", socket.gethostname())
        return self.root / f"{name or 'worker'}_{rank}.log"

    def error_file(self, attempt: int, rank: int) -> Path:
        """What a worker leaves of the error that ends it."""
        return self.root / "errors" / f"attempt_{attempt}_worker_{rank}.json"

    def stack_file(self, attempt: int, rank: int) -> Path:
        """Where a worker writes its stack when it is asked to."""
        return self.root / "errors" / f"attempt_{attempt}_worker_{rank}.stack"

    def make(self) -> None:
        """Make the folders.

        Raises:
            LaunchError: they cannot be made, or nothing can be written there.
        """
        try:
            self.root.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
            (self.root / "errors").mkdir(exist_ok=True)
            self.agent_log.touch()
        except OSError as error:
            raise LaunchError(
                f"LOG_DIR {self.root}: {error.strerror}", hint="choose another folder for the logs"
            ) from error

    def own_files(self) -> Iterator[Path]:
        """The files of this machine's earlier launch, apart from workers' logs."""
        yield from (path for path in (self.agent_log, self.events, self.status) if path.exists())

    def set_aside_job(self, ranks: range) -> Path | None:
        """Move an earlier launch's files to ``job_<n>/``; that folder, None where there is nothing to move."""
        if not self.events.exists():
            return None
        number = next(n for n in itertools.count(1) if not (self.root / f"job_{n}").exists())
        folder = self.root / f"job_{number}"
        others = (path for path in (self.root / "errors", *self.root.glob("attempt_*")) if path.exists())
        self._move([*self.own_files(), *self._worker_logs(ranks), *others], folder)
        return folder

    def set_aside_attempt(self, attempt: int, ranks: range) -> None:
        """Move the workers' logs of an attempt that is over to ``attempt_<n>/``."""
        self._move(list(self._worker_logs(ranks)), self.root / f"attempt_{attempt}")

    def _worker_logs(self, ranks: range) -> Iterator[Path]:
        yield from (path for path in map(self.worker_log, ranks) if path.exists())

    def _move(self, paths: list[Path], folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for path in paths:
            path.rename(folder / path.name)
