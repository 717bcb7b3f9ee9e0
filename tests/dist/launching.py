"""Starting launches from tests as a user would, and looking at what they leave."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 90
"""A launch of these tests that takes longer hangs."""

LAUNCHER = (sys.executable, "-m", "runformer.launch")

_NOT_INHERITED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH", "LOG_MF_PATH")


@dataclass(frozen=True)
class Launched:
    """A launch that has ended."""

    exit_code: int
    out: str
    err: str
    seconds: float
    log_dir: Path

    @property
    def summary(self) -> list[str]:
        """What the launcher said last."""
        return json.loads((self.log_dir / "status.json").read_text())["summary"]

    def log(self, rank: int) -> str:
        return (self.log_dir / f"worker_{rank}.log").read_text()

    def events(self, kind: str) -> list[dict[str, Any]]:
        return events(self.log_dir, kind)


def events(log_dir: Path, kind: str, suffix: str = "") -> list[dict[str, Any]]:
    """The events of one kind that a launch has written so far."""
    path = log_dir / f"events{suffix}.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else []
    return [row for row in rows if row["event"] == kind]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with one thread a worker, and nothing of another launcher."""
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)} | (more or {})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def flags(workers: int, log_dir: Path, *more: str) -> list[str]:
    """The flags of a launch on one machine that stays until its end."""
    numbers = ["--worker_num", str(workers), "--local_worker_num", str(workers), "--master_port", str(free_port())]
    return [*LAUNCHER, *numbers, "--join", "True", "--log_dir", str(log_dir), *more]


def start(command: Sequence[str], folder: Path, more: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=folder, env=environment(more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], log_dir: Path, began: float | None = None) -> Launched:
    """Wait for a launch that was started, within the time that it may take."""
    began = time.monotonic() if began is None else began
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the launch hangs; it has said:\n{out}\n{err}") from None
    return Launched(process.returncode, out, err, time.monotonic() - began, log_dir)


def launch(
    folder: Path, workers: int, *command: str, more: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> Launched:
    """Launch on one machine and wait for the end."""
    log_dir = folder / "logs"
    return finish(start([*flags(workers, log_dir, *more), *command], folder, env), log_dir)


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Wait for something; what the condition gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} has not come"
        time.sleep(0.02)
    return found


def worker_pids(log_dir: Path, workers: int, suffix: str = "") -> dict[int, int]:
    """The processes of a launch's workers by rank, once all have started."""
    found = wait_until(lambda: len(rows := events(log_dir, "worker_start", suffix)) >= workers and rows, "the workers")
    return {row["rank"]: row["pid"] for row in found[-workers:]}


def marked(mark: str) -> list[psutil.Process]:
    """The processes with this word in their environment: a launch and all that it has started, whatever became of it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("TEST_MARK") == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@contextmanager
def nothing_left(mark: str, seconds: float = 5):
    """Afterwards no process with the mark may be there any more; whatever is left is ended."""
    try:
        yield {"TEST_MARK": mark}
        deadline = time.monotonic() + seconds
        while (left := marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, [process.cmdline() for process in left]
    finally:
        for process in marked(mark):
            process.send_signal(signal.SIGKILL)
