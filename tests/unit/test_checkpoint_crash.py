"""A save that is interrupted or killed, at any moment, leaves a whole checkpoint behind."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from checkpoint_states import assert_intact, state
from checkpoint_trials import kill_savers

from runformer.checkpoint import CheckpointStore, Keep, complete_checkpoints

OURS = ("checkpoint/layout.py", "checkpoint/store.py", "checkpoint/share.py", "checkpoint/writer.py")


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


@pytest.mark.parametrize("kills", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_kills_at_random_moments_never_lose_a_finished_checkpoint(folder: Path, kills: int) -> None:
    found = kill_savers(folder, kills)
    assert (found.unloadable, found.lost) == (0, 0)
    assert found.torn > kills // 10, "hardly any kill hit a save: this shows nothing"
