"""Finds the rank that the others wait for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runformer.launch.failure import TIMEOUT, Failure
from runformer.observe.pulse import COLLECTIVES, PHASES


@dataclass(frozen=True, slots=True)
class RankStamp:
    """Where a rank was last seen.

    Attributes:
        rank: the global rank.
        node_rank: its machine's number.
        step: the step it is in.
        phase: what it does there.
        age: seconds since it said so.
        ended: it has exited, with code 0.
    """

    rank: int
    node_rank: int
    step: int
    phase: str
    age: float
    ended: bool = False

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return place(self.step, self.phase)


def place(step: int, phase: str) -> str:
    """A place in a run, in words; empty where nothing was stamped."""
    if not phase:
        return ""
    return f"step {step}, {phase}" if step else phase


def find_hang(stamps: Sequence[RankStamp], timeout: float, hosts: Mapping[int, str]) -> Failure | None:
    """The rank that lags where ranks disagree and none has moved for ``timeout`` seconds; None where nothing hangs.

    Where all are in the same collective for so long, one of them is not really in it: then the failure names no rank.
    Equal places outside a collective are no hang: compiling, loading and saving take their time.
    """
    running = [stamp for stamp in stamps if not stamp.ended]
    if not timeout or not running or len(stamps) < 2 or min(stamp.age for stamp in running) < timeout:
        return None
    if not any(stamp.phase for stamp in stamps):
        return None  # a program that does not say where it is
    ahead = max(running, key=_progress)
    behind = min(running, key=_progress)
    ended = [stamp for stamp in stamps if stamp.ended and _progress(stamp) <= _progress(ahead)]
    if ended:
        gone = min(ended, key=_progress)
        return _hang(gone, hosts, f"it ended (exit code 0) while {_waiting(running)}")
    if _progress(ahead) == _progress(behind):
        if ahead.phase not in COLLECTIVES:
            return None
        what = COLLECTIVES[ahead.phase]
        message = f"no rank has left {ahead.place} for {ahead.age:.0f} s: one of them never entered {what}"
        return _hang(behind, hosts, message, rank=None)
    ahead_of_it = [stamp for stamp in running if _progress(stamp) > _progress(behind)]
    since = f"for {behind.age:.0f} s" if behind.phase else "since its start, before it said anything,"
    message = f"it has been in {behind.place or 'the same place'} {since} while {_waiting(ahead_of_it)}"
    return _hang(behind, hosts, message, rank=behind.rank)


def _progress(stamp: RankStamp) -> tuple[int, int]:
    if not stamp.phase:
        return -1, 0
    return stamp.step, PHASES.index(stamp.phase) if stamp.phase in PHASES else len(PHASES)


def _waiting(stamps: Sequence[RankStamp]) -> str:
    furthest = max(stamps, key=_progress)
    names = ", ".join(str(stamp.rank) for stamp in sorted(stamps, key=lambda stamp: stamp.rank)[:8])
    more = "" if len(stamps) <= 8 else " and more"
    who = f"rank {names} waits" if len(stamps) == 1 else f"ranks {names}{more} wait"
    what = f" ({COLLECTIVES[furthest.phase]}, which it never entered)" if furthest.phase in COLLECTIVES else ""
    return f"{who} in {furthest.place}{what}"


def _hang(stamp: RankStamp, hosts: Mapping[int, str], message: str, rank: int | None = -1) -> Failure:
    return Failure(
        rank=stamp.rank if rank == -1 else rank,
        node_rank=stamp.node_rank,
        host=hosts[stamp.node_rank],
        kind="hang",
        exit_code=TIMEOUT,
        time=time.time(),
        place=stamp.place,
        message=message,
    )
