"""Finding weights: what ``load_checkpoint`` names, and which of the layouts it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runformer.checkpoint.foreign import ForeignTensors
from runformer.checkpoint.layout import MANIFEST, complete_checkpoints
from runformer.checkpoint.manifest import is_plain_name
from runformer.checkpoint.mindformers import open_newest, training_state
from runformer.checkpoint.reader import newest_intact, open_checkpoint
from runformer.checkpoint.tensor_file import NamedTensors
from runformer.config.task import LoadOptions, ModelOptions
from runformer.errors import CheckpointError

HF_SINGLE = "model.safetensors"
HF_INDEX = "model.safetensors.index.json"

_REFUSED = {
    ".ckpt": "MindSpore's own format; save it again with mindspore.save_checkpoint(..., format='safetensors')",
    ".gguf": "llama.cpp's format; turn it into a Hugging Face folder with runformer.checkpoint.gguf.gguf_to_hf",
    **dict.fromkeys(
        (".bin", ".pt", ".pth"),
        "a pickle, which can run any code when it is loaded; turn it into safetensors with "
        "transformers' model.save_pretrained(folder)",
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
        notices: newer checkpoints that were passed over because they are damaged.
    """

    path: Path
    tensors: NamedTensors
    common: Mapping[str, Any] | None
    notices: tuple[str, ...] = ()


def find_weights(load: LoadOptions, options: ModelOptions, *, verify: bool = True) -> WeightSource:
    """Recognise what ``load.path`` is.

    It may be one of our checkpoints, the folder that holds them or the output directory around it (the newest
    intact one counts); a Hugging Face folder; a safetensors file; a folder of such files; a MindFormers
    checkpoint folder with ``rank_0`` (the highest step counts). ``load.resume_name`` names one inside a folder.

    Args:
        load: ``load.path`` must be set.
        options: the model's shape, for files of MindFormers with fused tensors.
        verify: whether all bytes of our own checkpoints are checked, which reads them all.

    Raises:
        CheckpointError: it is missing, damaged, or of a kind that cannot be loaded.
    """
    assert load.path is not None, "there is a path to look at"
    return next(_sources(load.path, load, options, verify))


def find_resume(load: LoadOptions, output_dir: Path, options: ModelOptions, *, verify: bool = True) -> WeightSource:
    """The training checkpoint to go on from: in ``load.path``, else in the output directory.

    Weights alone that lie beside it are passed over. ``verify`` as in ``find_weights``.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = load.path or output_dir
    for source in _sources(path, load, options, verify):
        if source.common is not None:
            return source
    raise CheckpointError(
        f"{path}: weights alone, no training state to resume from",
        hint=_without_state(output_dir, load),
    )


def _without_state(output_dir: Path, load: LoadOptions) -> str:
    checkpoints = output_dir / "checkpoint"
    if load.path is not None and complete_checkpoints(checkpoints):
        return f"leave --load_checkpoint out to go on from {checkpoints}"
    return "leave --resume_training out to start a new run from these weights"


def _sources(path: Path, load: LoadOptions, options: ModelOptions, verify: bool) -> Iterator[WeightSource]:
    """What a path can mean, likeliest first; at least one, or a CheckpointError."""
    if not path.exists():
        raise CheckpointError(
            f"{path}: there is no such file or folder", hint="check --load_checkpoint and --output_dir"
        )
    if path.is_file():
        yield _from_files([path], path, options)
        return
    name, own = load.resume_name, f"rank_{load.rank}"
    ours = [root / (own if (root / own).is_dir() else "rank_0") for root in (path, path / "checkpoint")]
    folders = [path, path / "checkpoint", *ours]
    found = False
    for folder in folders:
        source = _from_folder(folder, options, verify) if name is None else _named(folder, name, options)
        if source is not None:
            _refuse_slices(folder, load)
            found = True
            yield source
    if not found:
        raise _nothing_found(path, folders, name)


def _refuse_slices(folder: Path, load: LoadOptions) -> None:
    """Of several ranks' folders each of as many processes may take its own; anyone else might get half a tensor.

    Raises:
        CheckpointError: there is another number of processes.
    """
    if not re.fullmatch(r"rank_\d+", folder.name):
        return
    ranks = sum(sibling.is_dir() for sibling in folder.parent.glob("rank_*"))
    if ranks not in (1, load.world_size):
        raise CheckpointError(
            f"{folder.parent}: a checkpoint of {ranks} ranks, each of which may hold only a slice of a tensor, "
            f"and this run has {load.world_size}",
            hint="merge it first with MindFormers' toolkit/safetensors/unified_safetensors.py",
        )


def _from_folder(folder: Path, options: ModelOptions, verify: bool) -> WeightSource | None:
    if complete_checkpoints(folder):
        checkpoint, problems = newest_intact(folder, verify=verify)
        return WeightSource(checkpoint.path, checkpoint, checkpoint.common, problems)
    if (folder / MANIFEST).is_file() or re.fullmatch(r"iteration_\d{8,}", folder.name):
        return _from_checkpoint(folder)
    paths = _safetensors_files(folder)
    return _from_files(paths, folder, options) if paths else None


def _from_checkpoint(directory: Path) -> WeightSource:
    checkpoint = open_checkpoint(directory)
    return WeightSource(directory, checkpoint, checkpoint.common)


def _named(folder: Path, name: str, options: ModelOptions) -> WeightSource | None:
    path = folder / name
    if not is_plain_name(name) or not path.exists():
        return None
    return _from_checkpoint(path) if path.is_dir() else _from_files([path], path, options)


def _from_files(paths: list[Path], path: Path, options: ModelOptions) -> WeightSource:
    for file in paths:
        _refuse(file)
    files, problems = open_newest(paths)
    path = files[0].path if len(files) == 1 else path
    common = training_state(files[0]) if len(files) == 1 else None
    return WeightSource(path, ForeignTensors(files, options), common, problems)


def _refuse(file: Path) -> None:
    reason = _REFUSED.get(file.suffix)
    if reason is not None:
        raise CheckpointError(f"{file}: {file.suffix} files are not loaded", hint=f"this is {reason}")


def _safetensors_files(folder: Path) -> list[Path]:
    """The files that a folder's weights are in: Hugging Face's by name, else all there are."""
    if (folder / HF_SINGLE).is_file():
        return [folder / HF_SINGLE]
    if (folder / HF_INDEX).is_file():
        return [folder / name for name in _shards(folder / HF_INDEX)]
    return sorted(folder.glob("*.safetensors"))


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


def _nothing_found(path: Path, folders: list[Path], name: str | None) -> CheckpointError:
    if name is not None:
        there = sorted(entry.name for folder in folders for entry in folder.glob("*") if _is_choice(entry))
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
        f"{path}: no weights here: neither checkpoints (iteration_…) nor safetensors files",
        hint="give a checkpoint folder, a Hugging Face folder or a safetensors file",
    )


def _is_choice(entry: Path) -> bool:
    return entry.suffix == ".safetensors" or (entry / MANIFEST).is_file()
