"""One row of the fault matrix: a planted fault under a launcher, and what became of the job."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from faults import FAULTS, HANGS, PHASES
from launching import LAUNCHER, environment, free_port, marked
from machines import Machine, machines
from tiny_task import make_tiny_task

Launcher = Literal["msrun", "torchrun"]

REPOSITORY = Path(__file__).resolve().parents[2]
HANG_TIMEOUT = 3.0
_PER_MACHINE = 2


@dataclass(frozen=True)
class Case:
    """A fault, where in the run, at which rank (the first or the last), on one machine or two."""

    fault: str
    phase: str
    last: bool
    machines: int

    @property
    def rank(self) -> int:
        return _PER_MACHINE * self.machines - 1 if self.last else 0

    @property
    def bound(self) -> float:
        """Seconds within which the launcher must have ended."""
        if self.fault in HANGS:
            return HANG_TIMEOUT + 3
        if self.fault == "sigterm_ignored":
            return 5
        return 3 if self.machines > 1 else 1

    def __str__(self) -> str:
        where = "last rank" if self.last else "rank 0"
        return f"{self.fault} at {self.phase}, {where}, {self.machines} machine{'s' * (self.machines > 1)}"


@dataclass(frozen=True)
class Row:
    """What became of it.

    Attributes:
        seconds: from the fault to the end of the last launcher; None: it did not end.
        right: whether the launcher named the rank.
        exit_codes: of the launchers.
        orphans: processes that were left a second later.
    """

    case: Case
    seconds: float | None
    right: bool
    exit_codes: list[int | None]
    orphans: int


def all_cases() -> list[Case]:
    return [
        Case(fault, phase, last, count)
        for count in (1, 2)
        for fault in FAULTS
        for phase in PHASES
        for last in (False, True)
    ]


def run_case(case: Case, launcher: Launcher, folder: Path, limit: float = 25) -> Row:
    """Run it in an empty folder; what still runs after ``limit`` seconds from the fault is ended."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_tiny_task(REPOSITORY, folder)
    stamp, mark = folder / "stamp", f"{folder}-{time.monotonic_ns()}"
    env = {
        "FAULT": case.fault,
        "FAULT_PHASE": case.phase,
        "FAULT_RANK": str(case.rank),
        "FAULT_STAMP": str(stamp),
        "TEST_MARK": mark,
    }
    with ExitStack() as stack:
        hosts: Sequence[Machine | None] = [None]
        if case.machines > 1:
            hosts = stack.enter_context(machines(case.machines))
            env["GLOO_SOCKET_IFNAME"] = "eth0"
        running = [start(command(case, launcher, node), folder, host, node, env) for node, host in enumerate(hosts)]
        ended = wait_for_all(running, stamp, limit)
        time.sleep(1)
        orphans = marked(mark)
        for process in orphans:
            process.send_signal(signal.SIGKILL)
    moment = float(stamp.read_text()) if stamp.exists() else None
    seconds = None if ended is None or moment is None else ended - moment
    codes = [process.poll() for process in running]
    return Row(case, seconds, is_named(case, launcher, folder), codes, len(orphans))


def command(case: Case, launcher: Launcher, node: int) -> list[str]:
    world = _PER_MACHINE * case.machines
    task = [str(REPOSITORY / "tests/dist/faults.py"), "--config", "config.yaml", "--use_parallel", "True"]
    # The exit is reached after two epochs; other faults come long before the end.
    epochs = "1" if case.phase == "exit" else "30"
    task += ["--parallel_config.data_parallel", str(world), "--batch_size", "1", "--epochs", epochs]
    address = "10.77.0.1" if case.machines > 1 else "127.0.0.1"
    port = "8118" if case.machines > 1 else str(free_port())
    if launcher == "msrun":
        numbers = ["--worker_num", str(world), "--local_worker_num", str(_PER_MACHINE), "--master_addr", address]
        place = ["--master_port", port, "--node_rank", str(node), "--log_dir", f"logs_{node}", "--join", "True"]
        # Where nothing hangs, a slow machine must not look as if something did.
        patience = HANG_TIMEOUT if case.fault in HANGS else 60
        return [*LAUNCHER, *numbers, *place, "--hang_timeout", str(patience), *task]
    numbers = ["--nnodes", str(case.machines), "--nproc-per-node", str(_PER_MACHINE), "--node-rank", str(node)]
    place = ["--master-addr", address, "--master-port", port, "--monitor-interval", "0.1"]
    return [sys.executable, "-m", "torch.distributed.run", *numbers, *place, *task]


def start(words: list[str], folder: Path, host: Machine | None, node: int, env: dict[str, str]) -> subprocess.Popen:
    lead = [] if host is None else ["ip", "netns", "exec", host.name]
    with (folder / f"said_{node}").open("w") as file:
        return subprocess.Popen(
            [*lead, *words], cwd=folder, env=environment(env), stdout=file, stderr=subprocess.STDOUT
        )


def wait_for_all(running: list[subprocess.Popen], stamp: Path, limit: float) -> float | None:
    """When the last of them ended; None where one did not, and was killed."""
    begun = time.monotonic()
    fault: float | None = None
    while any(process.poll() is None for process in running):
        now = time.monotonic()
        if fault is None and stamp.exists():
            fault = now
        if now - begun > 60 + limit or (fault is not None and now - fault > limit):
            for process in running:
                process.kill()
                process.wait(timeout=10)
            return None
        time.sleep(0.01)
    return time.time()


def is_named(case: Case, launcher: Launcher, folder: Path) -> bool:
    """Whether every launcher that says something names the rank as the cause."""
    said = [(folder / f"said_{node}").read_text() for node in range(case.machines)]
    if launcher == "msrun":
        return all(_named_by_msrun(case, folder, node) for node in range(case.machines))
    causes = [re.search(r"Root Cause.*?rank\s*:\s*(\d+)", text, flags=re.DOTALL) for text in said]
    found = [int(match[1]) for match in causes if match]
    return bool(found) and all(rank == case.rank for rank in found)


def _named_by_msrun(case: Case, folder: Path, node: int) -> bool:
    path = folder / f"logs_{node}" / ("status.json" if node == 0 else f"status_{node}.json")
    summary = json.loads(path.read_text())["summary"]
    first = summary[0] if summary else ""
    by_stack = any(line.startswith(f"  where rank {case.rank} is") for line in summary)
    return first.startswith(f"rank {case.rank} on ") or (first.startswith("the job hangs") and by_stack)
