"""``msrun status|wait|stop|logs|report LOG_DIR``: ask after a launch, and end it."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from runformer.errors import LaunchError, UsageError
from runformer.launch.console import Tail
from runformer.launch.report import report_lines
from runformer.launch.status import Status, read_all

_POLL_SECONDS = 0.2
_STOP_SECONDS = 60.0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def _parser(name: str, about: str) -> _Parser:
    parser = _Parser(prog=f"msrun {name}", description=about, allow_abbrev=False)
    parser.add_argument("log_dir", type=Path, metavar="LOG_DIR", help="the folder that the launch writes its logs to")
    return parser


def status(argv: Sequence[str]) -> int:
    """Print how a launch stands; 0 while it runs or after a good end, else its exit code."""
    values = _parser("status", "Say how a launch stands.").parse_args(argv)
    found = read_all(values.log_dir)
    for one in found:
        print("\n".join(_describe(one)))
    return _exit_code(found)


def _describe(one: Status) -> list[str]:
    machine = f"NODE_RANK {one.node_rank} ({one.host})"
    if one.is_over:
        return [f"{machine}: {one.state}, exit code {one.exit_code}", *(f"  {line}" for line in one.summary)]
    if not one.is_alive:
        return [f"{machine}: its launcher (process {one.pid}) is gone and could not say why"]
    steps = f", step {one.step} of {one.total}" if one.total else ""
    attempt = f", attempt {one.attempt + 1}" if one.attempt else ""
    return [f"{machine}: {one.state}{attempt}{steps} (launcher: process {one.pid})"]


def _exit_code(found: Sequence[Status]) -> int:
    codes = [one.exit_code if one.is_over else 0 if one.is_alive else 1 for one in found]
    return next((code for code in codes if code), 0)


def wait(argv: Sequence[str]) -> int:
    """Wait for the end of a launch; its exit code."""
    parser = _parser("wait", "Wait until a launch has ended, and end with its exit code.")
    parser.add_argument("--timeout", type=float, default=float("inf"), help="seconds after which to give up (never)")
    values = parser.parse_args(argv)
    found = _wait(values.log_dir, values.timeout)
    if not all(one.is_over or not one.is_alive for one in found):
        raise LaunchError(f"{values.log_dir}: still running after {values.timeout:g} s")
    for one in found:
        print("\n".join(_describe(one)))
    return _exit_code(found)


def _wait(log_dir: Path, seconds: float) -> list[Status]:
    """Every status, once all have ended or the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        found = read_all(log_dir)
        if all(one.is_over or not one.is_alive for one in found) or time.monotonic() > deadline:
            return read_all(log_dir)
        time.sleep(_POLL_SECONDS)


def stop(argv: Sequence[str]) -> int:
    """Tell this machine's launcher to end the job; 0 once it has ended."""
    values = _parser("stop", "End a launch: training saves first.").parse_args(argv)
    running = [one for one in read_all(values.log_dir) if not one.is_over and one.is_alive]
    if not running:
        print(f"{values.log_dir}: nothing is running here")
        return 0
    for one in running:
        os.kill(one.pid, signal.SIGTERM)
    found = _wait(values.log_dir, _STOP_SECONDS)
    for one in found:
        print("\n".join(_describe(one)))
    if any(not one.is_over and one.is_alive for one in found):
        raise LaunchError(f"{values.log_dir}: still running; another msrun stop ends the workers at once")
    return 0


def logs(argv: Sequence[str]) -> int:
    """Print a worker's log, and what is added to it while the launch runs."""
    parser = _parser("logs", "Show a worker's log.")
    parser.add_argument("--rank", type=int, default=0, help="whose (0)")
    parser.add_argument("--follow", action="store_true", help="go on until the launch ends")
    values = parser.parse_args(argv)
    paths = sorted(values.log_dir.glob(f"*_{values.rank}.log"), key=lambda path: path.name.startswith("scheduler"))
    if not paths:
        raise LaunchError(f"{values.log_dir}: there is no log of rank {values.rank}")
    tail = Tail(paths[0])
    going_on = True
    while going_on:
        going_on = values.follow and any(not one.is_over and one.is_alive for one in read_all(values.log_dir))
        for line in tail.lines(final=not going_on):
            print(line, flush=True)
        if going_on:
            time.sleep(_POLL_SECONDS)
    return 0


def report(argv: Sequence[str]) -> int:
    """Explain a launch from its events; 0."""
    values = _parser("report", "Explain what happened to a launch, from its events.jsonl.").parse_args(argv)
    print("\n".join(report_lines(values.log_dir)))
    return 0


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "status": status,
    "wait": wait,
    "stop": stop,
    "logs": logs,
    "report": report,
}
"""What can be asked of a launch, by the word after ``msrun``."""
