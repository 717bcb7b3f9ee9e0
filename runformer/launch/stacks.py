"""Stacks of workers, as faulthandler writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_WAITING = ("/torch/distributed/", "/torch/autograd/graph.py")
"""Where the innermost frame of a rank is that waits for others."""

_IDLE = ("/threading.py", "/queue.py", "/selectors.py", "/concurrent/futures/", "/multiprocessing/")
"""Where that of a thread is that has nothing to do."""


def read_stack(path: Path) -> str:
    """What a worker wrote; empty where it wrote nothing."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def threads(stack: str) -> list[list[str]]:
    """The frames of each thread, the innermost first; the main thread is the last one."""
    found: list[list[str]] = []
    for line in stack.splitlines():
        if line.startswith(("Thread", "Current thread")) or not found:
            found.append([])
        if line.startswith("  "):
            found[-1].append(line)
    return [frames for frames in found if frames]


def innermost(stack: str) -> list[str]:
    """The frames of the main thread, the innermost first."""
    found = threads(stack)
    return found[-1] if found else []


def outsider(stacks: Mapping[int, str]) -> str:
    """The stack of a rank that is not in the collective that all should be in; empty where every one is.

    A rank in a collective has it as its innermost frame; one in a backward pass, which sends gradients on the way, is
    in torch's engine. Where all main threads are there, another thread may hold the interpreter's lock for ever.
    """
    for rank, stack in stacks.items():
        frames = innermost(stack)
        if frames and not _is_at(frames, _WAITING):
            return show_frames(rank, frames)
    for rank, stack in stacks.items():
        for frames in threads(stack)[:-1]:
            if not _is_at(frames, _IDLE):
                return show_frames(rank, frames)
    return ""


def _is_at(frames: list[str], places: tuple[str, ...]) -> bool:
    return any(place in frames[0] for place in places)


def show_stack(rank: int, stack: str) -> str:
    """A rank's main thread with its name; empty where it wrote nothing."""
    frames = innermost(stack)
    return show_frames(rank, frames) if frames else ""


def show_frames(rank: int, frames: list[str]) -> str:
    """Frames under the name of their rank."""
    return "\n".join([f"rank {rank}:", *frames])
