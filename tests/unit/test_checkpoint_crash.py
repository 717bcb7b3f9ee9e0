"""A save that is interrupted or killed, at any moment, leaves a whole checkpoint behind."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from checkpoint_states import assert_intact, state

from runformer.checkpoint import CheckpointStore, Keep, complete_checkpoints

OURS = ("checkpoint/layout.py", "checkpoint/store.py", "checkpoint/share.py", "checkpoint/writer.py")
LARGE = 200_000  # rows of the tensors that the random kills hit in the middle


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: kills find what the page cache holds, so the disk adds only waiting."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=memory if os.access(memory, os.W_OK) else None))
    yield made
    shutil.rmtree(made)


@contextmanager
def at_line(number: int, action: Callable[[], None], files: tuple[str, ...] = OURS) -> Iterator[list[int]]:
    """Run ``action`` before the ``number``-th line that saving executes in ``files``; yields the lines so far."""
    count = [0]

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            count[0] += 1
            if count[0] == number:
                action()
        return trace

    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(None)


def lines_of_a_save(root: Path, second: int, files: tuple[str, ...] = OURS) -> range:
    """The lines of saving ``second`` after step 1, by number."""
    checkpoints = CheckpointStore(root, "tiny", Keep(1))
    checkpoints.save(state(1))
    with at_line(-1, lambda: None, files) as count:
        checkpoints.save(state(second))
    return range(1, count[0] + 1)


def assert_next_save_tidies_up(checkpoints: CheckpointStore) -> None:
    checkpoints.save(state(3))
    assert [entry.name for entry in checkpoints.root.iterdir()] == ["iteration_00000003"]


# Between opening a file and entering its block it is the collector that closes it, with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("second", [1, 2], ids=["same step", "next step"])
def test_an_interrupt_at_any_line_leaves_a_whole_checkpoint(folder: Path, second: int) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    for number in lines_of_a_save(folder / "count", second):
        checkpoints = CheckpointStore(folder / str(number), "tiny", Keep(1))
        checkpoints.save(state(1))
        with pytest.raises(KeyboardInterrupt), at_line(number, interrupt):
            checkpoints.save(state(second))
        assert assert_intact(checkpoints.root) in {1, second}
        assert not complete_checkpoints(checkpoints.root).popitem()[1].name.startswith(".")
        assert_next_save_tidies_up(checkpoints)


@pytest.mark.parametrize("second", [1, 2], ids=["same step", "next step"])
def test_a_kill_at_any_line_leaves_a_whole_checkpoint(folder: Path, second: int) -> None:
    files = (*OURS, "shutil.py")  # half-removed directories too
    for number in lines_of_a_save(folder / "count", second, files)[::2]:
        checkpoints = CheckpointStore(folder / str(number), "tiny", Keep(1))
        checkpoints.save(state(1))
        if (child := os.fork()) == 0:
            with at_line(number, lambda: os.kill(os.getpid(), signal.SIGKILL), files):
                checkpoints.save(state(second))
            os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert assert_intact(checkpoints.root) in {1, second}
        assert_next_save_tidies_up(checkpoints)


@pytest.mark.parametrize("kills", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_at_random_moments_never_lose_a_finished_checkpoint(folder: Path, kills: int) -> None:
    chance = random.Random(20260711)
    checkpoints = CheckpointStore(folder, "tiny", Keep(2))
    checkpoints.save(state(1, LARGE))
    step, torn = 1, 0
    for _ in range(kills):
        finished = save_until_killed(checkpoints, step, chance.uniform(0.0, 0.12))
        torn += any(entry.name.startswith(".") for entry in folder.iterdir())
        step = assert_intact(folder, LARGE)
        assert step in {finished, finished + 1}  # killed after the commit, before it could tell
    assert torn > kills // 10, "hardly any kill hit a save: this shows nothing"


def save_until_killed(checkpoints: CheckpointStore, step: int, seconds: float) -> int:
    """Let a child save each step twice, from ``step`` on; kill it ``seconds`` after its first save.

    Returns the last step that it finished.
    """
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)  # the threads that this process computes with did not come along
        for number in range(2 * step, 2 * step + 10**6):
            checkpoints.save(state(number // 2, LARGE))
            os.write(writing, b"%9d\n" % (number // 2))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert select.select([pipe], [], [], 60)[0], "the child did not save once in a minute"
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return int(pipe.read().split()[-1])
