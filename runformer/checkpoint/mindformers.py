"""Training checkpoints that MindFormers wrote on one device.

One safetensors file a step holds the weights, Adam's moments (``adam_m.``, ``adam_v.``) and scalars. Its
``meta.json`` and the file names count epochs and steps, and count them wrongly after a resume in the
middle of an epoch; so only ``global_step`` inside the file says how far it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runformer.checkpoint.tensor_file import TensorFile
from runformer.errors import CheckpointError

STEP = "global_step"
SCALARS = frozenset(
    {
        STEP,
        "epoch_num",
        "step_num",
        "global_batch_size",
        "loss_scale",
        "scale_sense",
        "current_iterator_step",
        "last_overflow_iterator_step",
    }
)
"""What a training checkpoint holds besides weights and moments."""


def open_newest(paths: Sequence[Path]) -> tuple[list[TensorFile], tuple[str, ...]]:
    """Open a folder's files: the one of the highest step, or all where none is a training checkpoint.

    The second value tells which damaged files were passed over.

    Raises:
        CheckpointError: a file is damaged and there is no training checkpoint to take instead.
    """
    files: list[TensorFile] = []
    problems: list[CheckpointError] = []
    for path in paths:
        try:
            files.append(TensorFile(path))
        except CheckpointError as error:
            problems.append(error)
    trained = [file for file in files if STEP in file.names]
    if trained:
        return [max(trained, key=lambda file: _number(file, STEP))], tuple(error.message for error in problems)
    if problems:
        raise problems[0]
    return files, ()


def training_state(file: TensorFile) -> dict[str, Any] | None:
    """The ``common`` part of a training checkpoint; None where ``file`` holds weights alone.

    ``step``; ``global_batch_size`` in samples; ``loss_scale`` with ``scale`` and ``good_steps``.

    Raises:
        CheckpointError: one of its scalars is no number.
    """
    if STEP not in file.names:
        return None
    state: dict[str, Any] = {"step": int(_number(file, STEP))}
    if "global_batch_size" in file.names:
        state["global_batch_size"] = int(_number(file, "global_batch_size"))
    scale = next((name for name in ("loss_scale", "scale_sense") if name in file.names), None)
    if scale is not None:
        state["loss_scale"] = {"scale": _number(file, scale), "good_steps": _good_steps(file)}
    return state


def _good_steps(file: TensorFile) -> int:
    """Steps since the scale last changed; a dynamic scale's counter starts at 1 and is raised after each step."""
    counters = ("current_iterator_step", "last_overflow_iterator_step")
    if any(name not in file.names for name in counters):
        return 0
    current, last = (int(_number(file, name)) for name in counters)
    return max(0, current - 1 - last)


def _number(file: TensorFile, name: str) -> float:
    tensor = file.tensor(name)
    if tensor.numel() != 1:
        raise CheckpointError(f"{file.path}: {name} has the shape {tuple(tensor.shape)}, a single number is expected")
    return float(tensor.item())
