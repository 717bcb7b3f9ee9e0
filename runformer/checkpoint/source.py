"""Finding weights: what ``load_checkpoint`` names, and which of the layouts it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from runformer.checkpoint.adapters import (
    FACTOR,
    PEFT_WEIGHTS,
    Combined,
    is_peft_folder,
    read_peft_config,
)
from runformer.checkpoint.description import described
from runformer.checkpoint.foreign.foreign_tensors import ForeignTensors
from runformer.checkpoint.foreign.mindformers import (
    SUFFIXES,
    open_newest,
    rank_checkpoints,
    rank_folders,
    training_state,
    weight_files,
)
from runformer.checkpoint.foreign.rank_files import RankFiles
from runformer.checkpoint.layout import MANIFEST, complete_checkpoints
from runformer.checkpoint.manifest import is_plain_name
from runformer.checkpoint.reader import open_checkpoint
from runformer.checkpoint.tensors import NamedTensors
from runformer.config.task import LoadOptions, LoraOptions, ModelOptions
from runformer.errors import CheckpointError, DamageError
from runformer.parallel.group import Group

T = TypeVar("T")

HF_SINGLE = "model.safetensors"
HF_INDEX = "model.safetensors.index.json"

_REFUSED = {
    ".gguf": "llama.cpp's format; turn it into a Hugging Face folder with python -m runformer convert",
    **dict.fromkeys(
        (".bin", ".pt", ".pth"),
        "a pickle, which can run any code when it is loaded; turn it into safetensors with "
        "python -m runformer convert --allow_pickle, which reads tensors only",
    ),
}


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Weights on the disk.

    Attributes:
        path: the checkpoint directory, folder or file they are in.
        tensors: parameters by our names; in a training checkpoint also the optimizer's state, of AdamW
            ``exp_avg.<parameter>`` and ``exp_avg_sq.<parameter>``.
        common: the rest of a training checkpoint, ``step`` at least; None where there are weights alone.
        lora: the adapters that are among the tensors, where that is known.
        notices: newer checkpoints that were passed over because they are damaged.
    """

    path: Path
    tensors: NamedTensors
    common: Mapping[str, Any] | None
    lora: LoraOptions | None = None
    notices: tuple[str, ...] = ()


def as_it_is(source: WeightSource) -> WeightSource:
    """What ``find_weights`` and ``find_resume`` are given where no tensor is to be read: the likeliest source."""
    return source


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What a path can mean: ``open`` reads no more than says what it is."""

    path: Path
    open: Callable[[], WeightSource]


def find_weights(
    load: LoadOptions, options: ModelOptions, take: Callable[[WeightSource], T], world: Group | None = None
) -> T:
    """Recognise what ``load.path`` is, and let ``take`` have it; what that gives.

    It may be one of our checkpoints, the folder that holds them or the output directory around it (the newest
    intact one counts); a Hugging Face folder; a safetensors or MindSpore file; a folder of such files; a folder
    of MindFormers with ``rank_<i>`` in it (the highest step of all ranks counts). ``load.resume_name`` names one in it.

    Args:
        load: ``load.path`` must be set.
        options: the model's shape, for files of MindFormers with fused tensors.
        take: reads what it needs; where that is damaged on some process, it is called again with an older checkpoint.
        world: the processes that do this together; None: this one alone.

    Raises:
        CheckpointError: it is missing, damaged, or of a kind that cannot be loaded.
    """
    assert load.path is not None, "there is a path to look at"
    candidates = _candidates(load.path, load, options)
    found = _first_intact(candidates, lambda source: take(_on_base(source, load, options)), world)
    assert found is not None, "whatever is found is taken"
    return found


def find_resume(
    load: LoadOptions,
    output_dir: Path,
    options: ModelOptions,
    take: Callable[[WeightSource], T],
    world: Group | None = None,
) -> T:
    """The training checkpoint to go on from: in ``load.path``, else in the output directory.

    Weights alone that lie beside it are passed over. The rest is as in ``find_weights``.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = load.path or output_dir

    def take_state(source: WeightSource) -> T | None:
        return None if source.common is None else take(source)

    found = _first_intact(_candidates(path, load, options), take_state, world)
    if found is None:
        hint = _without_state(output_dir, load)
        raise CheckpointError(f"{path}: weights alone, no training state to resume from", hint=hint)
    return found


def _first_intact(
    candidates: Iterable[_Candidate], take: Callable[[WeightSource], T | None], world: Group | None
) -> T | None:
    """What ``take`` gives of the first candidate that is intact on all processes, and that it wants."""
    problems: list[str] = []
    for candidate in candidates:
        found: T | None = None
        damage: DamageError | None = None
        try:
            source = candidate.open()
            found = take(replace(source, notices=(*problems, *source.notices)))
        except DamageError as error:
            damage = error
        if world is not None and world.any(damage is not None):
            damage = damage or DamageError(f"{candidate.path}: damaged, as another rank has found")
        if damage is None and found is not None:
            return found
        if damage is not None:
            problems.append(damage.message)
            last = damage
    if len(problems) == 1:
        raise last
    if problems:
        text = "\n".join([f"{candidate.path.parent}: no checkpoint is intact:", *problems])
        raise DamageError(text)
    return None


def _without_state(output_dir: Path, load: LoadOptions) -> str:
    checkpoints = output_dir / "checkpoint"
    if load.path is not None and complete_checkpoints(checkpoints):
        return f"leave --load_checkpoint out to go on from {checkpoints}"
    return "leave --resume_training out to start a new run from these weights"


def _on_base(source: WeightSource, load: LoadOptions, options: ModelOptions) -> WeightSource:
    """Adapters without the weights that they adapt, together with those of the folder that the model is of."""
    adapted = (match[1] for name in source.tensors if (match := FACTOR.fullmatch(name)))
    if load.base is None or all(f"{module}.weight" in source.tensors for module in adapted):
        return source
    base = find_weights(LoadOptions(load.base), options, as_it_is)
    return replace(source, tensors=Combined(source.tensors, base.tensors))


def _candidates(path: Path, load: LoadOptions, options: ModelOptions) -> Iterator[_Candidate]:
    """What a path can mean, likeliest first; at least one, or a CheckpointError."""
    if not path.exists():
        raise CheckpointError(
            f"{path}: there is no such file or folder", hint="check --load_checkpoint and --output_dir"
        )
    if path.is_file():
        yield _Candidate(path, lambda: _from_files([path], path, load, options))
        return
    found = False
    for folder in (path, path / "checkpoint"):
        for candidate in _in_folder(folder, load, options):
            found = True
            yield candidate
    if not found:
        raise _nothing_found(path, load.resume_name)


def _in_folder(folder: Path, load: LoadOptions, options: ModelOptions) -> Iterator[_Candidate]:
    """Our checkpoints in a folder, then weights in it, then those of MindFormers' ranks."""
    if load.resume_name is not None:
        yield from _named(folder, load.resume_name, load, options)
    else:
        checkpoints = complete_checkpoints(folder)
        if not checkpoints and ((folder / MANIFEST).is_file() or re.fullmatch(r"iteration_\d{8,}", folder.name)):
            checkpoints = {0: folder}
        for path in reversed(checkpoints.values()):
            yield _Candidate(path, partial(_from_checkpoint, path, load))
        paths = [] if checkpoints else _weight_files(folder)
        if paths:
            yield _Candidate(folder, lambda: _from_files(paths, folder, load, options))
    if rank_folders(folder):
        for files, problems in rank_checkpoints(folder, load):
            yield _Candidate(folder, partial(_from_ranks, files, problems, options))


def _named(folder: Path, name: str, load: LoadOptions, options: ModelOptions) -> Iterator[_Candidate]:
    path = folder / name
    if is_plain_name(name) and path.is_dir():
        yield _Candidate(path, lambda: _from_checkpoint(path, load))
    elif is_plain_name(name) and path.exists():
        yield _Candidate(path, lambda: _from_files([path], path, load, options))


def _from_checkpoint(directory: Path, load: LoadOptions) -> WeightSource:
    checkpoint = open_checkpoint(directory, load.verify)
    common = checkpoint.common
    _, lora = described(common) or (None, None)
    return WeightSource(directory, checkpoint, common, lora)


def _from_ranks(files: RankFiles, problems: tuple[str, ...], options: ModelOptions) -> WeightSource:
    return WeightSource(files.path, ForeignTensors([files], options), training_state(files), notices=problems)


def _from_files(paths: list[Path], path: Path, load: LoadOptions, options: ModelOptions) -> WeightSource:
    for file in paths:
        _refuse(file)
    files, problems = open_newest(paths, load)
    path = files[0].path if len(files) == 1 else path
    common = training_state(files[0]) if len(files) == 1 else None
    lora = read_peft_config(path.parent) if path.name == PEFT_WEIGHTS and is_peft_folder(path.parent) else None
    return WeightSource(path, ForeignTensors(files, options), common, lora, problems)


def _refuse(file: Path) -> None:
    reason = _REFUSED.get(file.suffix)
    if reason is not None:
        raise CheckpointError(f"{file}: {file.suffix} files are not loaded", hint=f"this is {reason}")


def _weight_files(folder: Path) -> list[Path]:
    """The files that a folder's weights are in: Hugging Face's and PEFT's by name, else all there are."""
    if is_peft_folder(folder):
        return [folder / PEFT_WEIGHTS]
    if (folder / HF_SINGLE).is_file():
        return [folder / HF_SINGLE]
    if (folder / HF_INDEX).is_file():
        return [folder / name for name in _shards(folder / HF_INDEX)]
    return weight_files(folder)


def _shards(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index}: not an index of safetensors files: {type(error).__name__}: {error}",
            hint="download the folder again",
        ) from None
    for name in names:
        if not isinstance(name, str) or not is_plain_name(name):
            raise CheckpointError(f"{index}: {name!r} is not the name of a file beside it")
    return sorted(names)


def _nothing_found(path: Path, name: str | None) -> CheckpointError:
    folders = [folder for root in (path, path / "checkpoint") for folder in (root, *rank_folders(root).values())]
    if name is not None:
        there = sorted({entry.name for folder in folders for entry in folder.glob("*") if _is_choice(entry)})
        return CheckpointError(
            f"{path}: there is no checkpoint {name} here",
            hint=f"these are: {', '.join(there)}" if there else "check --load_checkpoint and --resume_training",
        )
    for file in sorted(path.iterdir()):
        if file.suffix in _REFUSED:
            return CheckpointError(
                f"{path}: no safetensors file here, and {file.name} is not loaded",
                hint=f"it is {_REFUSED[file.suffix]}",
            )
    return CheckpointError(
        f"{path}: no weights here: neither checkpoints (iteration_…) nor files of tensors (.safetensors, .ckpt)",
        hint="give a checkpoint folder, a Hugging Face folder or a file of tensors",
    )


def _is_choice(entry: Path) -> bool:
    return entry.suffix in SUFFIXES or (entry / MANIFEST).is_file()
