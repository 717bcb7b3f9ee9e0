"""Decides what becomes of a job, from what all its machines tell. It runs on the machine with node rank 0."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from runformer.launch.failure import PREEMPTED, Failure, root_cause
from runformer.launch.hang import RankStamp, find_hang

Outcome = Literal["succeeded", "failed", "restart", "preempted", "stopped"]

_SETTLE_SECONDS = 0.1
"""A failure's cause may be told a moment after it: it waits so long for an earlier one."""

_ECHO_SECONDS = 1.5
"""Echoes wait longer: somewhere a rank has died, and its machine will say so, or fall silent."""

_SILENCE_SECONDS = 1.0
"""A machine that says nothing for so long while ranks elsewhere lose their connections has gone."""

LOST_SECONDS = 10.0
"""A machine that says nothing for so long is lost, whatever ranks elsewhere do."""


@dataclass
class NodeState:
    """What one machine's agent tells the others.

    Attributes:
        host: the machine's name.
        address: its address.
        ready: the attempt that it is ready to start.
        failures: of its workers, in this attempt.
        finished: all of its workers ended with exit code 0.
        left: all of its workers ended, some of them with the code of a pre-empted run.
        stopped: its workers were ended because the launcher was told to; the signal.
        steps: steps done by its first stamp in this attempt, and by its last.
        stamps: where its ranks are.
        stack: of a rank that hangs, once that is known.
        acknowledged: it has seen the verdict of this attempt.
    """

    host: str = ""
    address: str = ""
    ready: int = -1
    failures: list[Failure] = field(default_factory=list)
    finished: bool = False
    left: bool = False
    stopped: int = 0
    steps: tuple[int, int] | None = None
    stamps: list[RankStamp] = field(default_factory=list)
    stack: str = ""
    acknowledged: bool = False

    def begin(self, attempt: int) -> None:
        """Forget what belongs to an earlier attempt."""
        fresh = NodeState(self.host, self.address, attempt)
        for name, value in vars(fresh).items():
            setattr(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """It as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NodeState:
        """The reverse of ``to_json``."""
        state = cls(**values)
        state.failures = [Failure.from_json(item) for item in values["failures"]]
        state.stamps = [RankStamp(**item) for item in values["stamps"]]
        state.steps = None if values["steps"] is None else (values["steps"][0], values["steps"][1])
        return state


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an attempt.

    Attributes:
        attempt: which.
        outcome: how it ended.
        exit_code: the launcher's.
        cause: the failure that ended it.
        others: the other ranks that failed.
    """

    attempt: int
    outcome: Outcome
    exit_code: int
    cause: Failure | None = None
    others: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """It as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verdict:
        """The reverse of ``to_json``."""
        cause = None if values["cause"] is None else Failure.from_json(values["cause"])
        return cls(**{**values, "cause": cause, "others": tuple(values["others"])})


class Judge:
    """Gives one verdict for each attempt.

    Args:
        max_restarts: how often the job may be started again.
        hang_timeout: seconds without any progress after which ranks that disagree hang; 0: never.
    """

    def __init__(self, max_restarts: int, hang_timeout: float) -> None:
        self._restarts_left = max_restarts
        self._hang_timeout = hang_timeout
        self._first_heard: float | None = None

    def verdict(
        self, attempt: int, states: Mapping[int, NodeState], silence: Mapping[int, float], now: float
    ) -> Verdict | None:
        """The verdict, once there is one.

        Args:
            attempt: the attempt that runs.
            states: all machines' by node rank, of this attempt.
            silence: seconds since each of them was heard of.
            now: seconds of a monotonic clock.
        """
        failures = [failure for state in states.values() for failure in state.failures]
        limit = _SILENCE_SECONDS if failures and all(failure.echo for failure in failures) else LOST_SECONDS
        failures += [lost_machine(node, states[node], seconds) for node, seconds in silence.items() if seconds >= limit]
        stopped = max(state.stopped for state in states.values())
        if stopped:
            return Verdict(attempt, "stopped", 128 + stopped)
        if failures:
            return self._failed(attempt, states, failures, now)
        if all(state.finished for state in states.values()):
            return Verdict(attempt, "succeeded", 0)
        if all(state.finished or state.left for state in states.values()):
            return Verdict(attempt, "preempted", PREEMPTED)
        stamps = [stamp for state in states.values() for stamp in state.stamps]
        hang = find_hang(stamps, self._hang_timeout, {node: state.host for node, state in states.items()})
        return None if hang is None else self._failed(attempt, states, [hang], now, settled=True)

    def _failed(
        self,
        attempt: int,
        states: Mapping[int, NodeState],
        failures: list[Failure],
        now: float,
        *,
        settled: bool = False,
    ) -> Verdict | None:
        if self._first_heard is None:
            self._first_heard = now
        cause = root_cause(failures)
        if not settled and now - self._first_heard < (_ECHO_SECONDS if cause.echo else _SETTLE_SECONDS):
            return None
        self._first_heard = None
        if cause.echo:
            cause = _early_leaver(states) or cause
        others = tuple(sorted({item.rank for item in failures if item.rank is not None} - {cause.rank}))
        if self._restarts_left > 0 and cause.restartable and _has_progressed(states):
            self._restarts_left -= 1
            return Verdict(attempt, "restart", cause.exit_code, cause, others)
        return Verdict(attempt, "failed", cause.exit_code, cause, others)


def _early_leaver(states: Mapping[int, NodeState]) -> Failure | None:
    """A rank that ended well while others still needed it, where nothing else explains their lost connections."""
    for node, state in states.items():
        for stamp in state.stamps:
            if stamp.ended:
                return Failure(
                    rank=stamp.rank,
                    node_rank=node,
                    host=state.host,
                    kind="left",
                    exit_code=1,
                    time=time.time(),
                    place=stamp.place,
                    message="it ended with exit code 0 while other ranks still waited for it",
                )
    return None


def _has_progressed(states: Mapping[int, NodeState]) -> bool:
    """Whether some rank has done a step in this attempt; starting again would else end in the same place."""
    return any(state.steps is not None and state.steps[1] > state.steps[0] for state in states.values())


def lost_machine(node: int, state: NodeState, seconds: float) -> Failure:
    """The failure of a machine that was last heard of ``seconds`` ago; 0: the connection to it broke."""
    silent = f"the machine has said nothing for {seconds:.0f} s" if seconds else "the connection to the machine broke"
    return Failure(
        rank=None,
        node_rank=node,
        host=f"{state.host} ({state.address})",
        kind="lost",
        exit_code=1,
        time=time.time() - seconds,
        message=f"{silent}: it, its launcher or the network to it is gone",
    )
