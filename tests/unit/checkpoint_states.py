"""Training states that tell their step, for the tests of the checkpoint room."""

from __future__ import annotations

from pathlib import Path

import torch

from runformer.checkpoint import TrainingState, complete_checkpoints, newest_checkpoint, open_checkpoint

MOMENTS = ("exp_avg", "exp_avg_sq")


def state(step: int, size: int = 30) -> TrainingState:
    """A state that tells its step by every value."""
    model = {"a.weight": torch.full((size, 4), float(step)), "b": torch.full((3,), step, dtype=torch.bfloat16)}
    moments = {f"{moment}.{name}": tensor.float() + 0.5 for name, tensor in model.items() for moment in MOMENTS}
    return TrainingState.whole(model, moments, {"step": step, "samples": 4 * step})


def assert_intact(root: Path, size: int = 30) -> int:
    """All checkpoints in ``root`` are whole, and the newest holds what its step says; that step."""
    for path in complete_checkpoints(root).values():
        open_checkpoint(path).verify()
    newest = newest_checkpoint(root)
    assert newest is not None
    checkpoint = open_checkpoint(newest)
    step = int(checkpoint.common["step"])
    assert checkpoint.path.name.lstrip(".").startswith(f"iteration_{step:08d}")
    expected = state(step, size)
    for piece in (*expected.model, *expected.optimizer):
        assert torch.equal(checkpoint[piece.name], piece.tensor), piece.name
    return step


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes, to compare NaN and -0 too."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
