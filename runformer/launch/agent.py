"""The agent of one machine: it starts the workers, watches them, and ends them together.

The loop that starts, watches and restarts is ``SimpleElasticAgent``'s; here is what it leaves open.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    DEFAULT_ROLE,
    RunResult,
    SimpleElasticAgent,
    Worker,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.events.api import Event, EventSource

from runformer.launch.cluster import Cluster
from runformer.launch.command import Command
from runformer.launch.environment import cores_of, worker_environment
from runformer.launch.events import EventLog
from runformer.launch.failure import PREEMPTED, Failure, last_lines, read_error
from runformer.launch.hang import RankStamp, place
from runformer.launch.judge import Judge, NodeState, Verdict, lost_machine
from runformer.launch.layout import Layout
from runformer.launch.memory import OutOfMemoryWatch
from runformer.launch.options import LaunchOptions
from runformer.launch.rendezvous import JobRendezvous
from runformer.launch.stacks import outsider, read_stack, show_stack
from runformer.launch.stop import StopRequest
from runformer.launch.worker import STACK_SIGNAL
from runformer.launch.workers import ForkServerGone, WorkerEnd, Workers, WorkerStart
from runformer.observe.pulse import SLOT_BYTES, Pulse, Stamp

_TICK_SECONDS = 0.05
_TERM_SECONDS = 4.0
"""What a worker that handles SIGTERM gets to clean up after a failure elsewhere."""
_SIGNAL_SECONDS = 5.0
"""What a program without our handler gets when the job is told to end."""
_KILL_SECONDS = 5.0
_STACK_SECONDS = 0.5

_GOING_ON = RunResult(state=WorkerState.HEALTHY)


class JobAgent(SimpleElasticAgent):
    """Runs this machine's part of a job.

    Args:
        options: the launch.
        command: what workers run.
        layout: where files go.
        cluster: the machines of the job.
        workers: the handle of the fork server.
        events: where to write down what happens.
        stop: whether the launcher was told to end the job.
        tick: called about twenty times a second with the attempt and the ranks' stamps, for displays.
    """

    def __init__(
        self,
        options: LaunchOptions,
        command: Command,
        layout: Layout,
        cluster: Cluster,
        workers: Workers,
        events: EventLog,
        stop: StopRequest,
        tick: Callable[[int, Mapping[int, Stamp]], None],
    ) -> None:
        self._rendezvous_handler = JobRendezvous(cluster)
        spec = WorkerSpec(
            role=DEFAULT_ROLE,
            local_world_size=options.local_world_size,
            rdzv_handler=self._rendezvous_handler,
            entrypoint=str(command),
            max_restarts=options.max_restarts,
            monitor_interval=1e-6,  # _monitor_workers waits itself, for the first thing that happens
        )
        super().__init__(spec)
        self._options, self._command, self._layout = options, command, layout
        self._cluster, self._workers, self._events, self._stop, self._tick = cluster, workers, events, stop, tick
        self._judge = Judge(options.max_restarts, options.hang_timeout)
        self._memory = OutOfMemoryWatch()
        descriptor = os.memfd_create("runformer-pulse", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, SLOT_BYTES * options.local_world_size)
        self._pulse_path = f"/proc/{os.getpid()}/fd/{descriptor}"
        self._pulse_memory = mmap.mmap(descriptor, 0)
        self._pulses = [Pulse(self._pulse_memory, slot) for slot in range(options.local_world_size)]
        self._ended: dict[int, WorkerEnd] = {}
        self._told_to_stop = 0
        self.verdict: Verdict | None = None

    @property
    def attempt(self) -> int:
        """Which attempt runs, from 0."""
        return self._rendezvous_handler.attempt

    @property
    def ranks(self) -> range:
        """The global ranks of this machine's workers."""
        return self._options.ranks(self._cluster.node_rank)

    def stamps(self) -> dict[int, Stamp]:
        """What this machine's ranks stamped last, by global rank."""
        return {rank: pulse.read() for rank, pulse in zip(self.ranks, self._pulses, strict=True)}

    # What SimpleElasticAgent asks for.

    def _assign_worker_ranks(
        self, store: Any, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        return [
            Worker(local_rank, rank, rank, self._options.world_size, self._options.world_size)
            for local_rank, rank in enumerate(self.ranks)
        ]

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self.attempt > 0:
            self._layout.set_aside_attempt(self.attempt - 1, self.ranks)
        self._events.write("cluster", attempt=self.attempt, hosts=list(self._cluster.hosts.values()))
        self._ended.clear()
        self._pulse_memory[:] = bytes(len(self._pulse_memory))
        pids = self._workers.start(self._start(local_rank) for local_rank in range(self._options.local_world_size))
        for local_rank, pid in pids.items():
            rank = self.ranks[local_rank]
            log = str(self._layout.worker_log(rank))
            self._events.write("worker_start", attempt=self.attempt, rank=rank, pid=pid, log=log)
        return pids

    def _start(self, local_rank: int) -> WorkerStart:
        rank = self.ranks[local_rank]
        log = self._layout.worker_log(rank).absolute()
        log.write_bytes(b"")
        forked = self._options.fork_server and self._command.script is not None
        error_path = self._layout.error_file(self.attempt, rank).absolute()
        error_path.unlink(missing_ok=True)
        environment = worker_environment(
            self._options,
            self._cluster.endpoint,
            node_rank=self._cluster.node_rank,
            local_rank=local_rank,
            attempt=self.attempt,
            run_id=self._cluster.nonce,
            error_path=str(error_path),
            pulse_path=self._pulse_path,
        )
        argv = (str(self._command.script), *self._command.words[1:]) if forked else tuple(self._command.argv())
        stacks = str(self._layout.stack_file(self.attempt, rank).absolute())
        return WorkerStart(local_rank, argv, forked, environment, str(log), stacks, cores_of(self._options, local_rank))

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """Wait a moment for something to happen; what the job's verdict makes of this machine's workers."""
        try:
            for end in self._workers.wait(_TICK_SECONDS):
                self._note_end(end)
        except ForkServerGone:
            self._note_server_gone()
        self._tick(self.attempt, self.stamps())
        self._obey_stop()
        self._update_state()
        verdict = self._find_verdict()
        return _GOING_ON if verdict is None else self._obey(verdict)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        try:
            self._end_workers()
            self._workers.sweep()
        except ForkServerGone:
            pass  # and all workers with it

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        self._workers.close()

    def _exit_barrier(self) -> None:
        """Nothing: the verdict "succeeded" has waited for all machines."""

    def _construct_event(
        self,
        state: str,
        source: EventSource,
        worker: Worker | None = None,
        raw_error: str | None = None,
        duration_ms: float | None = None,
        exit_code: int | None = None,
        worker_pid: int | None = None,
    ) -> Event:
        """Torch's event of the same name, without its question to the name server for this machine's full name."""
        return Event(f"torchelastic.worker.status.{state}", source, metadata={"hostname": socket.gethostname()})

    def _record_worker_events(self, result: RunResult) -> None:
        """Nothing: ``events.jsonl`` has them."""

    # Workers.

    def _note_end(self, end: WorkerEnd) -> None:
        if end.local_rank in self._ended:
            return  # it was stopped, and that was told
        self._ended[end.local_rank] = end
        rank = self.ranks[end.local_rank]
        self._events.write(
            "worker_end",
            attempt=self.attempt,
            rank=rank,
            pid=end.pid,
            exit_code=end.exit_code,
            signal=end.signal,
            stopped=end.stopped,
        )
        if end.exit_code not in (0, PREEMPTED) and not self._stop.signal:
            self._fail(self._failure(end, rank))

    def _failure(self, end: WorkerEnd, rank: int) -> Failure:
        error = read_error(self._layout.error_file(self.attempt, rank))
        stamp = self._pulses[end.local_rank].read()
        log = self._layout.worker_log(rank)
        hint = error.hint
        if end.signal == signal.SIGKILL and not hint:
            hint = self._memory.hint()
        if end.stopped:
            hint = "something outside stopped it: a debugger, a batch system, kill -STOP"
        return Failure(
            rank=rank,
            node_rank=self._cluster.node_rank,
            host=self._cluster.state.host,
            kind="stopped" if end.stopped else "signal" if end.signal else "exit",
            exit_code=end.exit_code,
            time=error.time or end.time,
            place=place(stamp.step, stamp.phase),
            message=error.message,
            frame=error.frame,
            hint=hint,
            echo=error.echo,
            log=str(log),
            tail=last_lines(log),
        )

    def _fail(self, failure: Failure) -> None:
        self._events.write("failure", attempt=self.attempt, **failure.to_json())
        self._cluster.state.failures.append(failure)
        self._cluster.publish(at_once=True)

    def _note_server_gone(self) -> None:
        self._workers.pids.clear()
        if self._stop.signal:
            self._told_to_stop = self._cluster.state.stopped = self._stop.signal
        elif -1 not in self._ended:
            self._ended[-1] = WorkerEnd(-1, self._workers.server_pid, 128 + signal.SIGKILL, signal.SIGKILL, False, 0)
            message = "the process that holds this machine's workers was killed, and all of them with it"
            state = self._cluster.state
            self._fail(
                Failure(
                    None,
                    self._cluster.node_rank,
                    state.host,
                    "signal",
                    128 + signal.SIGKILL,
                    time.time(),
                    message=message,
                    hint=self._memory.hint(),
                )
            )

    def _update_state(self) -> None:
        """Tell the other machines how this one's workers are."""
        state, node, now = self._cluster.state, self._cluster.node_rank, time.monotonic()
        stamps = self.stamps()
        done = {stamp.done for stamp in stamps.values() if stamp.total}
        if done:
            state.steps = (min(done) if state.steps is None else state.steps[0], max(done))
        exits = {local_rank: end.exit_code for local_rank, end in self._ended.items()}
        state.stamps = [
            RankStamp(rank, node, stamp.step, stamp.phase, now - stamp.time, exits.get(local_rank) == 0)
            for local_rank, (rank, stamp) in enumerate(stamps.items())
        ]
        if len(exits) == self._options.local_world_size and not state.failures:
            codes = set(exits.values())
            state.finished = codes == {0}
            state.left = not state.finished and codes <= {0, PREEMPTED}
            if not state.finished and not state.left:
                state.stopped = self._told_to_stop
        self._cluster.publish()

    # Signals to the launcher.

    def _obey_stop(self) -> None:
        """Once told to end the job, tell the workers; when their time is over, kill them."""
        number = self._stop.signal
        if number and not self._told_to_stop:
            self._told_to_stop = number
            self._events.write("signal", signal=number)
            self._pass_on(number)
        if self._told_to_stop and self._stop.is_over(time.monotonic()):
            self._workers.signal(signal.SIGKILL)

    def _pass_on(self, number: int) -> None:
        saving = {local_rank for local_rank, pulse in enumerate(self._pulses) if pulse.read().saves_on_signal}
        if number == signal.SIGINT:  # somebody wants to end it now, not to save
            self._workers.signal(signal.SIGKILL, saving)
            self._workers.signal(signal.SIGINT, self._workers.alive - saving)
            saving = set()
        else:
            self._workers.signal(signal.SIGTERM)
        self._stop.grant(self._options.grace_period if saving else _SIGNAL_SECONDS)

    # Verdicts.

    def _find_verdict(self) -> Verdict | None:
        cluster, attempt = self._cluster, self.attempt
        if not cluster.is_host:
            published = cluster.watch.news.get("verdict")
            if published is not None and published["attempt"] == attempt:
                return Verdict.from_json(published)
            if lost := cluster.watch.lost():
                state = cluster.watch.states.get(0, NodeState())
                return Verdict(attempt, "failed", 1, lost_machine(0, state, lost[1]))
            return None
        silence = {node: cluster.watch.silence(node) for node in range(cluster.nodes)}
        verdict = self._judge.verdict(attempt, cluster.states(attempt), silence, time.monotonic())
        if verdict is not None:
            cluster.announce({"go": attempt, "hosts": cluster.hosts, "verdict": verdict.to_json()})
        return verdict

    def _obey(self, verdict: Verdict) -> RunResult:
        self.verdict = verdict
        cause = None if verdict.cause is None else verdict.cause.to_json()
        self._events.write(
            "verdict", attempt=self.attempt, outcome=verdict.outcome, cause=cause, others=list(verdict.others)
        )
        if verdict.cause is not None and verdict.cause.kind == "hang":
            self._ask_for_stacks(verdict.cause)
        self._remaining_restarts = 1 if verdict.outcome == "restart" else 0
        if verdict.outcome in ("succeeded", "preempted"):
            return RunResult(state=WorkerState.SUCCEEDED)
        return RunResult(state=WorkerState.FAILED)

    def _ask_for_stacks(self, cause: Failure) -> None:
        """Let every rank here write down where it is; a rank that holds no interpreter lock for ever does so too."""
        self._workers.signal(STACK_SIGNAL)
        time.sleep(_STACK_SECONDS)
        self._cluster.state.stack = self._own_stack(cause)
        self._cluster.publish(at_once=True)

    def _own_stack(self, cause: Failure) -> str:
        """The stack of the rank that hangs, where it is here; it may have no name where all should be in one place."""
        stacks = {rank: read_stack(self._layout.stack_file(self.attempt, rank)) for rank in self.ranks}
        return outsider(stacks) if cause.rank is None else show_stack(cause.rank, stacks.get(cause.rank, ""))

    def stack_of_cause(self) -> str:
        """The stack of the rank that hangs, from whichever machine it is on; empty where nothing hangs."""
        cause = self.verdict.cause if self.verdict else None
        if cause is None or cause.kind != "hang":
            return ""
        cluster, stack = self._cluster, ""
        deadline = time.monotonic() + _STACK_SECONDS * (1 if cluster.is_host else 4)
        while not stack and time.monotonic() < deadline:
            found = cluster.states(self.attempt).values() if cluster.is_host else ()
            stack = next((state.stack for state in found if state.stack), cluster.watch.news.get("stack", ""))
            time.sleep(_TICK_SECONDS)
        if cluster.is_host:
            cluster.announce({"verdict": self.verdict.to_json(), "stack": stack} if self.verdict else {})
        return stack

    def _end_workers(self) -> None:
        """End all workers: those that only wait for a dead rank at once, others with a moment to clean up."""
        saving = {local_rank for local_rank, pulse in enumerate(self._pulses) if pulse.read().saves_on_signal}
        stopped = {local_rank for local_rank, end in self._ended.items() if end.stopped}
        # What a training run has saved is whole at any moment, and its next step will never come.
        self._workers.signal(signal.SIGKILL, saving | stopped)
        self._workers.signal(signal.SIGTERM)
        self._wait_for_ends(_TERM_SECONDS)
        self._workers.signal(signal.SIGKILL)
        self._wait_for_ends(_KILL_SECONDS)

    def _wait_for_ends(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._workers.alive and (left := deadline - time.monotonic()) > 0:
            self._workers.wait(left)  # what ends now is no failure
            self._tick(self.attempt, self.stamps())
