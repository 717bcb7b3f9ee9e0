"""Several machines on one: network namespaces on a bridge that lies in one more, so that the host's network is not touched.

Needs root, ``ip`` and ``iptables``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from launching import environment

REQUIRED = "RUNFORMER_REQUIRE_NAMESPACES"
"""Where this is set, tests that need namespaces fail instead of skipping."""


def run(*words: str, check: bool = True) -> str:
    return subprocess.run(words, check=check, capture_output=True, text=True, timeout=30).stdout


class Machine:
    """One of them: a namespace with loopback and one interface, ``eth0``, on the bridge."""

    def __init__(self, name: str, cable: str, switch: str, address: str) -> None:
        self.name, self.address = name, address
        self._cable, self._switch = cable, switch

    def make(self) -> None:
        run("ip", "netns", "add", self.name)
        run("ip", "-n", self._switch, "link", "add", self._cable, "type", "veth", "peer", "eth0", "netns", self.name)
        run("ip", "-n", self._switch, "link", "set", self._cable, "master", "bridge", "up")
        run("ip", "-n", self.name, "link", "set", "lo", "up")
        run("ip", "-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        run("ip", "-n", self.name, "link", "set", "eth0", "up")

    def start(self, command: Sequence[str], folder: Path, more: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command],
            cwd=folder, env=environment(more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def unplug(self) -> None:
        """Pull the cable."""
        run("ip", "-n", self._switch, "link", "set", self._cable, "down")

    def drop(self, chain: str, *match: str) -> None:
        """Drop packets one way: ``chain`` is INPUT or OUTPUT of this machine."""
        run("ip", "netns", "exec", self.name, "iptables", "-A", chain, "-o" if chain == "OUTPUT" else "-i", "eth0",
            *match, "-j", "DROP")  # fmt: skip

    def slow_down(self, rate: str) -> None:
        """Limit what this machine sends, as ``tc`` writes it (``20mbit``)."""
        run("tc", "-n", self.name, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "32kbit",
            "latency", "400ms")  # fmt: skip

    def pids(self) -> list[int]:
        return [int(word) for word in run("ip", "netns", "pids", self.name, check=False).split()]

    def power_off(self) -> None:
        """Kill all that runs here, and pull the cable."""
        self.unplug()
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run("ip", "netns", "delete", self.name, check=False)


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """So many machines; gone afterwards, with all that runs on them."""
    mark = f"rf{os.getpid()}"
    switch = f"{mark}s"
    made = [Machine(f"{mark}m{n}", f"{mark}c{n}"[-15:], switch, f"10.77.0.{n + 1}") for n in range(count)]
    try:
        run("ip", "netns", "add", switch)
        run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "bridge", "up")
        for machine in made:
            machine.make()
        yield made
    finally:
        for machine in made:
            machine.remove()
        run("ip", "netns", "delete", switch, check=False)


def why_not() -> str | None:
    """Why there can be no such machines here; None: there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    missing = [name for name in ("ip", "iptables", "tc") if shutil.which(name) is None]
    if missing:
        return f"network namespaces need {', '.join(missing)}"
    try:
        with machines(1) as (machine,):
            run("ip", "netns", "exec", machine.name, "iptables", "-L")
    except subprocess.CalledProcessError as error:
        return f"network namespaces do not work here: {error.stderr.strip()}"
    return None


@contextlib.contextmanager
def required_machines(count: int) -> Iterator[list[Machine]]:
    """So many machines; where there can be none the test skips, or fails where they are required."""
    reason = why_not()
    if reason is not None and not os.environ.get(REQUIRED):
        pytest.skip(reason)
    assert reason is None, reason
    with machines(count) as made:
        yield made
