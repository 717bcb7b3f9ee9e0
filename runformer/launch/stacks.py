"""Stacks of workers, as faulthandler writes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path


def read_stack(path: Path) -> str:
    """What a worker wrote; empty where it wrote nothing."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def innermost(stack: str) -> list[str]:
    """The frames of the main thread, the innermost first."""
    lines = stack.splitlines()
    # The main thread is the last one that is written.
    starts = [number for number, line in enumerate(lines) if line.startswith(("Thread", "Current thread"))]
    return [line for line in lines[starts[-1] + 1 if starts else 0 :] if line.strip()]


def odd_one_out(stacks: Mapping[int, str]) -> str:
    """The stack of the rank that is elsewhere than most; the first one where all are in the same place."""
    places = {rank: tuple(innermost(stack)[:2]) for rank, stack in stacks.items()}
    if not places:
        return ""
    counts = Counter(places.values())
    rank = min(places, key=lambda rank: (counts[places[rank]], rank))
    return show_stack(rank, stacks[rank])


def show_stack(rank: int, stack: str) -> str:
    """A rank's main thread with its name; empty where it wrote nothing."""
    frames = innermost(stack)
    return "\n".join([f"rank {rank}:", *frames]) if frames else ""
