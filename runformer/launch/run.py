"""A launch from its options to its exit code."""

from __future__ import annotations

import logging
import os
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from runformer.errors import LaunchError, RunformerError
from runformer.launch import address as addresses
from runformer.launch.command import Command, find_command
from runformer.launch.detach import detach
from runformer.launch.environment import prepare_environment
from runformer.launch.events import EventLog
from runformer.launch.facts import job_facts, versions
from runformer.launch.layout import Layout
from runformer.launch.options import LaunchOptions
from runformer.launch.records import record_traceback, set_up_records
from runformer.launch.status import State, Status, StatusFile, read_status
from runformer.launch.stop import StopRequest
from runformer.launch.summary import summarise

if TYPE_CHECKING:
    from runformer.launch.agent import JobAgent
    from runformer.launch.workers import Workers

logger = logging.getLogger(__name__)

_FRONT_DOOR = "run_mindformer.py"


def launch(options: LaunchOptions) -> int:
    """Run this machine's part of a job; the exit code.

    Without ``join`` this returns 0 at once, and the launch goes on in the background.

    Raises:
        UsageError: the command cannot be run.
        LaunchError: the log folder cannot be used.
    """
    command = find_command(options.command)
    layout = _layout(options)
    _refuse_second_job(layout)
    aside = layout.set_aside_job(options.ranks(max(0, options.node_rank)))
    layout.make()
    background = None
    if not options.join:
        background = detach(layout.agent_log)
        if background is None:
            _tell_how_to_go_on(options)
            return 0
    set_up_records(layout.agent_log, console=options.join)
    if aside is not None:
        logger.info("the logs of an earlier launch are now in %s", aside)
    running = _Launch(options, command, layout)
    if background is not None:
        background.ready()
    return running.run()


def _tell_how_to_go_on(options: LaunchOptions) -> None:
    folder = options.log_dir
    print(f"started in the background: {options.local_world_size} workers, logs in {folder}")
    print(f"go on with: msrun status {folder} | msrun wait {folder} | msrun logs {folder} | msrun stop {folder}")


def _layout(options: LaunchOptions) -> Layout:
    number = str(options.node_rank) if options.node_rank > 0 else socket.gethostname()
    suffix = "" if _is_first(options) else f"_{number}"
    return Layout(options.log_dir, suffix, options.worker_log_name, _own_address(options))


def _is_first(options: LaunchOptions) -> bool:
    """Whether this is the machine with node rank 0, as far as can be known before they meet."""
    if options.nodes == 1 or options.node_rank >= 0:
        return options.nodes == 1 or options.node_rank == 0
    try:
        return addresses.is_own(addresses.resolve(options.master_addr))
    except OSError:
        return False


def _own_address(options: LaunchOptions) -> str:
    try:
        return addresses.route_to(addresses.resolve(options.master_addr), options.master_port)
    except (OSError, LaunchError):
        return "unknown"


def _refuse_second_job(layout: Layout) -> None:
    if not layout.status.exists():
        return
    try:
        status = read_status(layout.status)
    except LaunchError:
        return  # it will be moved aside with the rest
    if not status.is_over and status.is_alive:
        raise LaunchError(
            f"LOG_DIR {layout.root} belongs to a job that is running (process {status.pid})",
            hint=f"choose another LOG_DIR, or end that one: msrun stop {layout.root}",
        )


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a launch ended, and what to say of it."""

    state: State
    exit_code: int
    lines: list[str]


class _Stopped(Exception):
    """The launcher was told to end while it waited for something else."""


class _Launch:
    """One launch: it sets up, runs the agent, and tells how that ended."""

    def __init__(self, options: LaunchOptions, command: Command, layout: Layout) -> None:
        self._options, self._command, self._layout = options, command, layout
        self._stop = StopRequest()
        self._started = time.time()
        node_rank = max(0, options.node_rank)
        self._events = EventLog(layout.events, node_rank)
        process = psutil.Process()
        first = Status(
            state="waiting",
            pid=process.pid,
            started=process.create_time(),
            host=socket.gethostname(),
            node_rank=node_rank,
            world_size=options.world_size,
            command=str(command),
        )
        self._status = StatusFile(layout.status, first)

    def run(self) -> int:
        """Run it; the exit code."""
        self._stop.install()
        self._write_start()
        try:
            ending = self._run()
        except RunformerError as error:
            lines = [error.message] + ([f"  hint: {error.hint}"] if error.hint else [])
            ending = _Ending("failed", error.exit_code, lines)
        except _Stopped:
            number = self._stop.signal
            ending = _Ending("stopped", 128 + number, [f"told to end by signal {number} before the workers started"])
        except Exception as error:
            record_traceback(error)
            ending = _Ending("failed", 1, [f"{type(error).__name__}: {error} (the traceback is in scheduler.log)"])
        return self._tell(ending)

    def _write_start(self) -> None:
        self._events.write(
            "start",
            command=str(self._command),
            world_size=self._options.world_size,
            local_world_size=self._options.local_world_size,
            host=socket.gethostname(),
            pid=os.getpid(),
            versions=versions(),
        )

    def _tell(self, ending: _Ending) -> int:
        for line in ending.lines:
            logger.log(logging.INFO if ending.exit_code == 0 else logging.ERROR, line)
        seconds = round(time.time() - self._started, 3)
        self._events.write("end", outcome=ending.state, exit_code=ending.exit_code, seconds=seconds)
        self._status.update(state=ending.state, exit_code=ending.exit_code, summary=tuple(ending.lines))
        return ending.exit_code

    def _run(self) -> _Ending:
        preload = self._preload()
        # These know torch's processes, or fork: they come after torch, and before anything that makes threads.
        from runformer.launch.fork_server import adopt_orphans, kill_descendants
        from runformer.launch.workers import Workers

        adopt_orphans()
        with ExitStack() as stack:
            stack.callback(kill_descendants)
            workers = Workers(preload)
            stack.callback(workers.close)
            return self._run_agent(workers)

    def _preload(self) -> tuple[str, ...]:
        """Import torch where workers are forked, and name what else the fork server should import."""
        prepare_environment(self._options.local_world_size)
        if not self._options.fork_server or self._command.script is None:
            return ()
        import torch.distributed  # noqa: F401 - before the fork server is forked, so that it has it too

        return ("runformer.train.run",) if self._command.script.name == _FRONT_DOOR else ()

    def _run_agent(self, workers: Workers) -> _Ending:
        from runformer.launch.agent import JobAgent
        from runformer.launch.cluster import Cluster
        from runformer.launch.display import Display

        facts = job_facts(self._options, self._command)
        cluster = Cluster(self._options, facts, logger.info, self._check)
        self._events.node_rank = cluster.node_rank
        self._status.update(node_rank=cluster.node_rank)
        logs = {rank: self._layout.worker_log(rank) for rank in self._options.ranks(cluster.node_rank)}
        display = Display(self._options, self._status, logs, cluster.node_rank)
        agent = JobAgent(
            self._options, self._command, self._layout, cluster, workers, self._events, self._stop, display.tick
        )
        try:
            agent.run()
        finally:
            display.close(agent.stamps())
        stack = agent.stack_of_cause()
        cluster.leave(agent.attempt)
        return self._ending(agent, stack)

    def _ending(self, agent: JobAgent, stack: str) -> _Ending:
        verdict = agent.verdict
        assert verdict is not None, "a run ends with a verdict"
        assert verdict.outcome != "restart", "a restart is no end"
        seconds = time.time() - self._started
        lines = summarise(
            verdict, log_dir=self._layout.root, step=self._status.status.step, seconds=seconds, stack=stack
        )
        return _Ending(verdict.outcome, verdict.exit_code, lines)

    def _check(self) -> None:
        if self._stop.signal:
            raise _Stopped
