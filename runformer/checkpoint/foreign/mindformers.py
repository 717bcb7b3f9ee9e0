"""Checkpoints that MindFormers wrote.

Every rank has a folder ``rank_<i>`` with a file a step, which holds weights, Adam's moments (``adam_m.``, ``adam_v.``)
and scalars. ``meta.json`` beside it and the file names count epochs and steps, and count them wrongly after a resume in
the middle of an epoch; so only ``global_step`` inside a file says how far it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runformer.checkpoint.foreign.ckpt_file import CkptFile
from runformer.checkpoint.foreign.mindspore_strategy import Strategy, read_strategies
from runformer.checkpoint.foreign.rank_files import RankFiles
from runformer.checkpoint.foreign.safetensors_file import TensorFile
from runformer.checkpoint.manifest import is_plain_name
from runformer.checkpoint.tensors import ArrayFile
from runformer.config.task import LoadOptions
from runformer.errors import CheckpointError
from runformer.models.part import Box

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

SUFFIXES = (".safetensors", ".ckpt")
_RANK = re.compile(r"rank_([0-9]+)")


def open_file(path: Path, load: LoadOptions) -> ArrayFile:
    """A file of tensors, safetensors or MindSpore's own.

    Raises:
        CheckpointError: it is damaged, or no such file.
    """
    return CkptFile(path, verify=load.verify == "full") if path.suffix == ".ckpt" else TensorFile(path)


def open_newest(paths: Sequence[Path], load: LoadOptions) -> tuple[list[ArrayFile], tuple[str, ...]]:
    """Open a folder's files: the one of the highest step, or all where none is a training checkpoint.

    The second value tells which damaged files were passed over.

    Raises:
        CheckpointError: a file is damaged and there is no training checkpoint to take instead.
    """
    files, problems = _open_all(paths, load)
    trained = [file for file in files if STEP in file.names]
    if trained:
        return [max(trained, key=_step)], tuple(error.message for error in problems)
    if problems:
        raise problems[0]
    return files, ()


def rank_folders(folder: Path) -> dict[int, Path]:
    """The folders of ranks in a folder, by rank."""
    found = ((_RANK.fullmatch(path.name), path) for path in folder.glob("rank_*") if path.is_dir())
    return {int(match[1]): path for match, path in sorted(found, key=lambda item: item[1].name) if match}


def rank_checkpoints(folder: Path, load: LoadOptions) -> Iterator[tuple[RankFiles, tuple[str, ...]]]:
    """The checkpoints of all ranks in a folder, the highest step that all of them have first.

    Each with what was passed over because it is damaged. ``load.resume_name`` names one, by any rank's file name.

    Raises:
        CheckpointError: the ranks have no step in common, or a file is damaged and there is nothing else.
    """
    folders, strategies = rank_folders(folder), _strategies(folder, load)
    if load.resume_name is not None:
        named = {rank: own / _of_rank(load.resume_name, rank) for rank, own in folders.items()}
        files = {rank: [open_file(path, load)] for rank, path in named.items() if path.is_file()}
        if files:
            yield _together(folder, files, strategies), ()
        return
    opened = {rank: _open_all(weight_files(own), load) for rank, own in folders.items()}
    problems = [error for _, errors in opened.values() for error in errors]
    steps = {rank: {_step(file): file for file in files if STEP in file.names} for rank, (files, _) in opened.items()}
    if any(steps.values()):
        common = set.intersection(*(set(own) for own in steps.values()))
        if not common:
            text = "; ".join(f"rank {rank}: {sorted(own)}" for rank, own in sorted(steps.items()))
            raise CheckpointError(
                f"{folder}: no step is there on all ranks, {text}", hint="copy all ranks' folders here"
            )
        for step in sorted(common, reverse=True):
            files = {rank: [own[step]] for rank, own in steps.items()}
            yield _together(folder, files, strategies), tuple(error.message for error in problems)
        return
    if problems:
        raise problems[0]
    if any(files for files, _ in opened.values()):
        yield _together(folder, {rank: files for rank, (files, _) in opened.items()}, strategies), ()


def weight_files(folder: Path) -> list[Path]:
    """The files of tensors in a folder: safetensors, or where there are none MindSpore's own."""
    for suffix in SUFFIXES:
        if found := sorted(path for path in folder.glob(f"*{suffix}") if path.is_file()):
            return found
    return []


def training_state(file: ArrayFile) -> dict[str, Any] | None:
    """The ``common`` part of a training checkpoint; None where ``file`` holds weights alone.

    ``step``; ``global_batch_size`` in samples; ``loss_scale`` with ``scale`` and ``good_steps``.

    Raises:
        CheckpointError: one of its scalars is no number.
    """
    if STEP not in file.names:
        return None
    state: dict[str, Any] = {"step": _step(file)}
    if "global_batch_size" in file.names:
        state["global_batch_size"] = int(_number(file, "global_batch_size"))
    scale = next((name for name in ("loss_scale", "scale_sense") if name in file.names), None)
    if scale is not None:
        state["loss_scale"] = {"scale": _number(file, scale), "good_steps": _good_steps(file)}
    return state


def _together(
    folder: Path, files: Mapping[int, Sequence[ArrayFile]], strategies: Mapping[int | None, Strategy]
) -> RankFiles:
    every = [file for own in files.values() for file in own]
    return RankFiles(every[0].path if len(every) == 1 else folder, files, strategies)


def _open_all(paths: Sequence[Path], load: LoadOptions) -> tuple[list[ArrayFile], list[CheckpointError]]:
    files: list[ArrayFile] = []
    problems: list[CheckpointError] = []
    for path in paths:
        try:
            files.append(open_file(path, load))
        except CheckpointError as error:
            problems.append(error)
    return files, problems


def _strategies(folder: Path, load: LoadOptions) -> Mapping[int | None, Strategy]:
    """How the ranks' tensors are cut: as the task says, or a run of MindFormers has left beside its checkpoints."""
    if load.strategy is not None:
        return read_strategies(load.strategy)
    beside = folder.parent / "strategy"
    return read_strategies(beside) if list(beside.glob("*.ckpt")) else {}


def _of_rank(name: str, rank: int) -> str:
    """A file's name, with ``rank_<i>`` in it that of another rank."""
    return re.sub(r"rank_[0-9]+", f"rank_{rank}", name, count=1) if is_plain_name(name) else ""


def _good_steps(file: ArrayFile) -> int:
    """Steps since the scale last changed; a dynamic scale's counter starts at 1 and is raised after each step."""
    counters = ("current_iterator_step", "last_overflow_iterator_step")
    if any(name not in file.names for name in counters):
        return 0
    current, last = (int(_number(file, name)) for name in counters)
    return max(0, current - 1 - last)


def _step(file: ArrayFile) -> int:
    return int(_number(file, STEP))


def _number(file: ArrayFile, name: str) -> float:
    tensor = file.read(name, Box.of(file.shape(name)))
    if tensor.numel() != 1:
        raise CheckpointError(f"{file.path}: {name} has the shape {tuple(tensor.shape)}, a single number is expected")
    return float(tensor.item())
