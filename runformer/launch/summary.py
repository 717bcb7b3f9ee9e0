"""What a launcher says last: the cause in at most 15 lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runformer.launch.failure import Failure, signal_name
from runformer.launch.judge import Verdict

_LONGEST_LINE = 200
_MESSAGE_LINES, _TAIL_LINES, _STACK_LINES = 2, 4, 5


def summarise(verdict: Verdict, *, log_dir: Path, step: int = 0, seconds: float = 0, stack: str = "") -> list[str]:
    """The lines that tell how a job ended.

    Args:
        verdict: how it ended.
        log_dir: where everything is.
        step: steps done.
        seconds: how long it ran.
        stack: of the rank that hangs, as faulthandler writes it.
    """
    after = f"after {seconds:.0f} s" + (f" and {step} steps" if step else "")
    if verdict.outcome == "succeeded":
        return [f"all workers ended well {after}"]
    if verdict.outcome == "preempted":
        return [f"told to end: the run left {after}; where it saves, --resume_training True goes on"]
    if verdict.outcome == "stopped":
        return [
            f"told to end by {signal_name(verdict.exit_code - 128)} {after}; checkpoints already saved are as they were"
        ]
    assert verdict.cause is not None, "a failure has a cause"
    return [*_failure(verdict.cause, verdict.others, after, stack), f"the whole story: msrun report {log_dir}"]


def _failure(cause: Failure, others: Sequence[int], after: str, stack: str) -> list[str]:
    lines = [_cut(f"{_who(cause)} {_what(cause)} {after}" + (f", in {cause.place}" if cause.place else ""))]
    message = [line for line in cause.message.splitlines() if line.strip()]
    lines += [_cut(f"  {line}") for line in message[:_MESSAGE_LINES]]
    if cause.frame:
        lines.append(_cut(f"  at {cause.frame}"))
    if stack:
        lines.append(f"  where {stack.splitlines()[0].rstrip(':')} is, innermost first:")
        lines += [_cut(f"  | {line.strip()}") for line in stack.splitlines()[1 : _STACK_LINES + 1]]
    elif cause.tail:
        tail = [line for line in cause.tail if line.strip() not in message][-_TAIL_LINES:]
        lines.append(f"  last lines of {cause.log}:")
        lines += [_cut(f"  | {line}") for line in tail]
    if cause.hint:
        lines.append(_cut(f"  hint: {cause.hint.splitlines()[0]}"))
    if others:
        lines.append(_cut(f"  failed as well, after it: {_ranks(others)}"))
    return lines


def _who(cause: Failure) -> str:
    where = f"on {cause.host} (NODE_RANK {cause.node_rank})"
    if cause.kind == "hang" and cause.rank is None:
        return "the job"
    return f"a machine, {where}," if cause.rank is None else f"rank {cause.rank} {where}"


def _what(cause: Failure) -> str:
    if cause.kind == "hang":
        return "hangs"
    if cause.kind == "lost":
        return "was lost"
    if cause.kind == "left":
        return "left too early"
    number = cause.exit_code - 128
    if cause.kind == "signal":
        return f"was ended by {signal_name(number)}"
    if cause.kind == "stopped":
        return f"was stopped ({signal_name(number)})"
    return f"failed with exit code {cause.exit_code}"


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:16]))
    return f"rank{'s' * (len(ranks) > 1)} {shown}" + (f" and {len(ranks) - 16} more" if len(ranks) > 16 else "")


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…"
