"""Stacks of workers, as faulthandler writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_WAITING = ("/torch/distributed/", "/torch/autograd/graph.py")
"""Where the innermost frame of a rank is that waits for others."""


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


def outsider(stacks: Mapping[int, str]) -> str:
    """The stack of a rank that is not in the collective that all should be in; empty where every one is.

    A rank in a collective has it as its innermost frame; one in a backward pass, which sends gradients on the way, is
    in torch's engine.
    """
    for rank, stack in stacks.items():
        frames = innermost(stack)
        if frames and not any(place in frames[0] for place in _WAITING):
            return show_stack(rank, stack)
    return ""


def show_stack(rank: int, stack: str) -> str:
    """A rank's main thread with its name; empty where it wrote nothing."""
    frames = innermost(stack)
    return "\n".join([f"rank {rank}:", *frames]) if frames else ""
