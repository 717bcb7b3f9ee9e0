"""When checkpoints are due and which are kept, by steps, seconds, numbers and minutes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from checkpoint_states import state

from runformer.checkpoint import CheckpointStore, Keep, TrainingState, complete_checkpoints, open_checkpoint
from runformer.config.task import SaveOptions
from runformer.errors import CheckpointError
from runformer.parallel.group import alone
from runformer.train import saving
from runformer.train.saving import Saver

WORLD = alone(torch.device("cpu"))


def saver(folder: Path, options: SaveOptions) -> Saver:
    return Saver(folder, options, WORLD, frozenset({"b"}))


def test_due_by_steps_or_by_seconds_or_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_steps = saver(tmp_path, SaveOptions(every_steps=3))
    assert [step for step in range(1, 10) if by_steps.is_due(step)] == [3, 6, 9]
    now = [100.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    by_seconds = saver(tmp_path, SaveOptions(every_steps=None, every_seconds=60))
    now[0] += 59
    assert not by_seconds.is_due(1)
    now[0] += 1
    assert by_seconds.is_due(2)
    by_seconds.save(state(2))
    assert not by_seconds.is_due(3)
    assert not saver(tmp_path, SaveOptions(every_steps=None)).is_due(1)


def test_one_is_kept_for_every_so_many_minutes(tmp_path: Path) -> None:
    """Each of these was written ten minutes after the one before it."""
    store = CheckpointStore(tmp_path, "x", Keep(minutes=25))
    for step in range(1, 9):
        path = store.save(state(step))
        written = time.time() - 60 * 10 * (8 - step)
        os.utime(path / "metadata.json", (written, written))
    store.prune(8)
    assert list(complete_checkpoints(tmp_path)) == [1, 4, 7, 8]


def test_all_are_kept_without_a_number(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "x", Keep())
    for step in range(1, 9):
        store.save(state(step))
    assert len(complete_checkpoints(tmp_path)) == 8


def test_weights_by_themselves(tmp_path: Path) -> None:
    saver(tmp_path, SaveOptions(weights=True, trained=True)).save(state(4))
    assert set(open_checkpoint(tmp_path / "checkpoint_network/iteration_00000004")) == {"a.weight", "b"}
    assert set(open_checkpoint(tmp_path / "checkpoint_trainable/iteration_00000004")) == {"b"}
    assert len(set(open_checkpoint(tmp_path / "checkpoint/iteration_00000004"))) == 6


def test_what_is_written_behind_is_the_state_as_it_was(tmp_path: Path) -> None:
    """Training changes the tensors at once; two saves, so that memory is taken again."""
    behind = saver(tmp_path, SaveOptions(behind=True))
    for step in (1, 2):
        moving = state(step, size=200_000)
        behind.save(moving)
        for piece in (*moving.model, *moving.optimizer):
            piece.tensor.fill_(-1)
    behind.finish()
    for step in (1, 2):
        written = open_checkpoint(tmp_path / f"checkpoint/iteration_0000000{step}")
        written.verify()
        for piece in (*state(step, 200_000).model, *state(step, 200_000).optimizer):
            assert torch.equal(written[piece.name], piece.tensor)


def poll_until_done(behind: Saver) -> None:
    for _ in range(1000):
        behind.poll()
        time.sleep(0.01)


def test_an_error_behind_is_told_at_the_next_step(tmp_path: Path) -> None:
    behind = saver(tmp_path, SaveOptions(behind=True))
    behind.save(state(1))
    behind.finish()
    odd = TrainingState.whole({"z": torch.zeros(1, dtype=torch.complex64)}, {}, {"step": 2})
    behind.save(odd)
    with pytest.raises(CheckpointError, match="the tensor z has the type"):
        poll_until_done(behind)
    assert list(complete_checkpoints(tmp_path / "checkpoint")) == [1]
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["iteration_00000001"]
    behind.save(state(3))
    behind.finish()
    assert list(complete_checkpoints(tmp_path / "checkpoint")) == [1, 3]
