"""The fork server: a clean process with torch imported, from which workers are forked, and which ends what they leave.

It has one thread and holds no device, so a fork of it is a good place to start from. It is the parent of every
worker and the reaper of their orphans: when the agent ends, in whatever way, its end of the channel closes, and
everything that descends from here is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import psutil

from runformer.launch.stop import STOP_SIGNALS
from runformer.launch.worker import run_worker
from runformer.launch.workers import WorkerEnd, WorkerStart

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_KILL_SECONDS = 5.0
_STOPPED_SECONDS = 0.3
"""A debugger that attaches stops a process for a moment: only who stays stopped counts."""


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with(parent: int) -> None:
    """Let this process be killed when its parent ends; at once, where that has happened already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def kill_descendants(seconds: float = _KILL_SECONDS) -> None:
    """Kill every process that descends from this one, and wait until they are gone."""
    deadline = time.monotonic() + seconds
    while (children := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.005)


def serve(channel: socket.socket, preload: Sequence[str], agent: int) -> NoReturn:
    """Do what the agent asks until it closes the channel; then kill all descendants and exit."""
    os.setsid()  # the terminal's Ctrl-C is for the agent, and so are other signals that ask to end the job
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    adopt_orphans()
    try:
        for name in preload:
            with contextlib.suppress(Exception):  # a worker that needs it will say what is wrong with it
                importlib.import_module(name)
        if os.getppid() == agent:
            _ForkServer(channel).run()
    except OSError:
        pass  # the agent is gone
    finally:
        kill_descendants()
        os._exit(0)


class _ForkServer:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._local_ranks: dict[int, int] = {}
        self._stopped: dict[int, tuple[float, int]] = {}
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)

    def run(self) -> None:
        while True:
            channel = self._channel.fileno()
            ready, _, _ = select.select([channel, self._wake], [], [], _STOPPED_SECONDS if self._stopped else None)
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self._reap()
            self._tell_stopped()
            if channel in ready:
                data = self._channel.recv(1 << 17)
                if not data:
                    return
                self._obey(json.loads(data))

    def _obey(self, message: dict[str, Any]) -> None:
        if "start" in message:
            self._start(WorkerStart(**message["start"]))
            return
        if "sweep" in message:
            kill_descendants()
            self._local_ranks.clear()
            self._stopped.clear()
            self._send({"swept": True})
            return
        for pid, local_rank in self._local_ranks.items():
            if local_rank in message["local_ranks"]:
                _signal_group(pid, message["signal"])

    def _start(self, start: WorkerStart) -> None:
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._send({"failed": error.strerror})
            return
        if pid == 0:
            self._become_worker(start, server)
        self._local_ranks[pid] = start.local_rank
        self._send({"started": pid})

    def _become_worker(self, start: WorkerStart, server: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, *STOP_SIGNALS):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            die_with(server)
            self._channel.close()
            os.close(self._wake)
            os.close(self._woken)
            run_worker(start)
        finally:
            os._exit(1)

    def _reap(self) -> None:
        """Take note of every child that ended, stopped or went on; orphans of workers are among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid not in self._local_ranks:
                continue
            self._stopped.pop(pid, None)
            if os.WIFSTOPPED(status):
                self._stopped[pid] = (time.monotonic(), os.WSTOPSIG(status))
            elif not os.WIFCONTINUED(status):
                self._tell_end(pid, status)

    def _tell_end(self, pid: int, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        number = -code if code < 0 else 0
        end = WorkerEnd(self._local_ranks.pop(pid), pid, 128 + number if number else code, number, False, time.time())
        self._tell(end)

    def _tell_stopped(self) -> None:
        for pid, (since, number) in list(self._stopped.items()):
            if time.monotonic() - since >= _STOPPED_SECONDS:
                del self._stopped[pid]
                self._tell(WorkerEnd(self._local_ranks[pid], pid, 128 + number, number, True, time.time()))

    def _tell(self, end: WorkerEnd) -> None:
        self._send({"ended": {name: getattr(end, name) for name in WorkerEnd.__slots__}})

    def _send(self, message: dict[str, Any]) -> None:
        self._channel.send(json.dumps(message).encode())


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:  # it was forked a moment ago, and has no group of its own yet; or it has just ended
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
