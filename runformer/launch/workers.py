"""The agent's side of the fork server: start workers, signal them, hear of their ends."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runformer.errors import LaunchError

_MESSAGE_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """How one worker is started.

    Attributes:
        local_rank: its number on this machine.
        argv: the script and its arguments where it is forked, else the program and its arguments.
        forked: run the script in a copy of the fork server, which has torch imported, instead of a new program.
        environment: variables that are set on top of the agent's.
        output: the file that takes its standard output and error.
        stacks: the file that its stack is written to on ``STACK_SIGNAL``.
        cores: the cores that it may use; None: all.
    """

    local_rank: int
    argv: tuple[str, ...]
    forked: bool
    environment: Mapping[str, str]
    output: str
    stacks: str
    cores: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """A worker ended, or was stopped (SIGSTOP and the like), which ends it for us.

    Attributes:
        local_rank: its number on this machine.
        pid: its process.
        exit_code: as a shell gives it: 128 + n for the signal n.
        signal: what ended or stopped it; 0: it exited by itself.
        stopped: it is not dead, but stands still.
        time: seconds since 1970.
    """

    local_rank: int
    pid: int
    exit_code: int
    signal: int
    stopped: bool
    time: float


class ForkServerGone(LaunchError):
    """The fork server died, and with it all workers."""

    def __init__(self) -> None:
        super().__init__("the process that starts this machine's workers was killed")


class Workers:
    """The workers of this machine. They live in the fork server, a child that is forked here.

    Make it before this process has threads.

    Args:
        preload: modules that the fork server imports before it forks a worker.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        from runformer.launch.fork_server import serve

        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        agent = os.getpid()
        self.server_pid = os.fork()
        if self.server_pid == 0:
            self._channel.close()
            serve(theirs, preload, agent)
        theirs.close()
        self.pids: dict[int, int] = {}
        self._ends: list[WorkerEnd] = []
        self._closed = False

    @property
    def alive(self) -> set[int]:
        """Local ranks of the workers that have not ended."""
        return set(self.pids)

    def start(self, starts: Iterable[WorkerStart]) -> dict[int, int]:
        """Start workers; their processes by local rank.

        Raises:
            LaunchError: one cannot be started.
            ForkServerGone: it died.
        """
        started = {}
        for start in starts:
            self._send({"start": asdict(start)})
            while "ended" in (reply := self._receive()):  # of a worker started before, which did not live long
                self._note(reply)
            if "failed" in reply:
                raise LaunchError(f"worker {start.local_rank} of this machine cannot be started: {reply['failed']}")
            self.pids[start.local_rank] = reply["started"]
            started[start.local_rank] = reply["started"]
        return started

    def signal(self, number: int, local_ranks: Iterable[int] | None = None) -> None:
        """Send a signal to workers that are alive, and to the processes of their group."""
        ranks = sorted(self.alive if local_ranks is None else self.alive & set(local_ranks))
        if ranks:
            with contextlib.suppress(ForkServerGone):  # the next wait says so
                self._send({"signal": number, "local_ranks": ranks})

    def sweep(self) -> None:
        """Kill whatever ended workers have left running, and wait until it is gone.

        Raises:
            ForkServerGone: it died.
        """
        self._send({"sweep": True})
        while "ended" in (reply := self._receive()):
            self._note(reply)

    def wait(self, seconds: float) -> list[WorkerEnd]:
        """What happened to workers, waiting up to ``seconds`` for the first thing.

        Raises:
            ForkServerGone: it died.
        """
        while select.select([self._channel], [], [], 0 if self._ends else seconds)[0]:
            self._note(self._receive())
        ends, self._ends = self._ends, []
        return ends

    def _note(self, message: Mapping[str, Any]) -> None:
        end = WorkerEnd(**message["ended"])
        if not end.stopped:
            self.pids.pop(end.local_rank, None)
        self._ends.append(end)

    def close(self, seconds: float = 5) -> None:
        """End the fork server, with every worker and what workers started; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._channel.close()  # it sees that, kills what is left, and exits
        self.pids.clear()
        descriptor = os.pidfd_open(self.server_pid)
        if not select.select([descriptor], [], [], seconds)[0]:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)
        os.waitpid(self.server_pid, 0)

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except OSError as error:
            raise ForkServerGone() from error

    def _receive(self) -> dict[str, Any]:
        try:
            data = self._channel.recv(_MESSAGE_BYTES)
        except OSError as error:
            raise ForkServerGone() from error
        if not data:
            raise ForkServerGone()
        message: dict[str, Any] = json.loads(data)
        return message
