"""From any weights that can be loaded to those that others load, and whether these compute the same."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor

from runformer.checkpoint.adapters import FACTOR, PEFT_CONFIG, PEFT_WEIGHTS, Combined, Merged, peft_config, peft_name
from runformer.checkpoint.description import KEY, describe, described
from runformer.checkpoint.foreign.ckpt_writer import write_ckpt
from runformer.checkpoint.foreign.hf_folder import (
    CONFIG,
    GENERATION,
    Shard,
    copy_beside,
    generation_config,
    hf_config,
    shards_of,
    write_json,
    write_shards,
)
from runformer.checkpoint.foreign.mindformers import SUFFIXES
from runformer.checkpoint.keep import Keep
from runformer.checkpoint.layout import staged_directory, sync_directory
from runformer.checkpoint.load import check_weights, load_weights
from runformer.checkpoint.share import TrainingState
from runformer.checkpoint.source import WeightSource, as_it_is, find_weights
from runformer.checkpoint.store import CheckpointStore
from runformer.checkpoint.tensors import TYPES, NamedTensors
from runformer.config.task import LoadOptions, LoraOptions, ModelOptions, Precision
from runformer.errors import CheckpointError
from runformer.models.build import build_model, outline
from runformer.models.families import options_from_config, read_config
from runformer.models.names import to_mindformers

Form = Literal["hf", "mindformers", "runformer", "peft"]
_ANY = ModelOptions(1, 1, 1, 1, 1, 1, 1, 1)  # to look at weights before it is known of what model they are
_TOKENS = 8
_CLOSE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far logits may be from those of adapters that are not merged, of the largest one; else they are the same bits."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to convert, and into what.

    Attributes:
        load: the weights.
        output: the folder to make, which must not be there.
        form: whose files it is to have.
        folder: a Hugging Face folder that describes the model and has its tokenizer; None: the input does.
        model: the model's shape and adapters, where a task file gives them.
        dtype: the type to write; None: that of each tensor.
        shard_bytes: the largest file.
        workers: how many files are written at a time.
        verify: whether both are loaded, and compute the same.
    """

    load: LoadOptions
    output: Path
    form: Form
    folder: Path | None = None
    model: tuple[ModelOptions, LoraOptions | None] | None = None
    dtype: torch.dtype | None = None
    shard_bytes: int = 5 * 10**9
    workers: int = 1
    verify: bool = True


def convert(request: Conversion) -> str:
    """Convert; a sentence for the user. An error leaves nothing behind.

    Raises:
        CheckpointError: the input cannot be loaded, does not say what model it is of, or the output computes otherwise.
        ConfigError: a ``config.json`` describes no model that can be built.
    """
    if request.output.exists():
        raise CheckpointError(f"{request.output} exists already", hint="delete it or choose another name")
    if request.output.suffix in SUFFIXES and request.form != "mindformers":
        hint = "name a folder, or give --to mindformers for one file of weights under its names"
        raise CheckpointError(f"{request.output}: --to {request.form} makes a folder, not a file", hint=hint)
    if request.folder is not None and not (request.folder / CONFIG).is_file():
        hint = f"--model names a folder with {CONFIG}, and the tokenizer's files"
        raise CheckpointError(f"{request.folder}: there is no {CONFIG} here", hint=hint)
    job = _look(request)
    request.output.parent.mkdir(parents=True, exist_ok=True)
    with _place(request.output) as staged:
        _WRITERS[request.form](job, staged)
        if request.verify:
            _require_same(job, staged)
    checked = ", which compute the same" if request.verify else ""
    return f"wrote {len(job.names)} tensors to {request.output}{checked}"


@contextmanager
def _place(output: Path) -> Iterator[Path]:
    """A folder to fill, which takes its place at the end; where one file is asked for, the file in it does."""
    if output.suffix not in SUFFIXES:
        with staged_directory(output) as staged:
            yield staged
        return
    with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        yield Path(folder)
        (file,) = Path(folder).iterdir()
        file.replace(output)
        sync_directory(output.parent)


@dataclass(frozen=True, slots=True)
class _Job:
    """A conversion, with what was found: the weights as they are, and as they are written; adapters, where some are."""

    request: Conversion
    options: ModelOptions
    lora: LoraOptions | None
    source: WeightSource
    written: WeightSource
    names: tuple[str, ...]
    folder: Path | None

    @property
    def tensors(self) -> NamedTensors:
        """What is written."""
        return self.written.tensors

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first tensor there."""
        return self.request.dtype or TYPES[self.tensors.kind(self.names[0])]


def _look(request: Conversion) -> _Job:
    path = request.load.path
    assert path is not None, "there is an input"
    folder = request.folder or (path if (path / CONFIG).is_file() else None)
    options, lora = request.model or _described(request.load, folder)
    source = find_weights(replace(request.load, base=folder), options, as_it_is)
    modules = sorted({match[1] for name in source.tensors if (match := FACTOR.fullmatch(name))})
    lora = source.lora or lora
    if request.form == "peft" and not modules:
        raise CheckpointError(f"{source.path}: holds no LoRA adapters", hint="give --to hf, mindformers or runformer")
    if modules and lora is None:
        hint = "give the task file that they were trained with (--config)"
        raise CheckpointError(f"{source.path}: does not say how strongly its LoRA adapters count", hint=hint)
    if lora is not None:
        lora = replace(lora, target_modules="|".join(f"{re.escape(name)}$" for name in modules)) if modules else None
    written = source
    if lora is not None and request.form in ("hf", "mindformers"):
        written = replace(source, tensors=Merged(source.tensors, lora.alpha / lora.rank), lora=None)
    whole = dict(outline(options, Precision(), None if written is not source else lora).named_parameters())
    check_weights(written, whole, tied=options.tie_embeddings)
    names = tuple(name for name in whole if request.form != "peft" or FACTOR.fullmatch(name))
    return _Job(request, options, lora, source, written, names, folder)


def _described(load: LoadOptions, folder: Path | None) -> tuple[ModelOptions, LoraOptions | None]:
    """What model the weights are of, as they themselves say or a folder does."""
    source = find_weights(load, _ANY, as_it_is)
    if found := described(source.common):
        return found
    if folder is not None:
        return options_from_config(read_config(folder), str(folder / CONFIG)), None
    raise CheckpointError(
        f"{load.path}: does not say what model it is of",
        hint="give a folder with config.json (--model), or the task file (--config)",
    )


def _write_hf(job: _Job, staged: Path) -> None:
    request = job.request
    shards = shards_of(job.tensors, {name: name for name in job.names}, request.dtype, request.shard_bytes)
    write_shards(staged, shards, job.tensors, request.dtype, workers=request.workers, kind="pt")
    given = job.folder is not None and (job.folder / CONFIG).is_file()
    config = dict(read_config(job.folder)) if given and job.folder is not None else hf_config(job.options)
    config.pop("dtype", None)  # what newer versions of transformers write, and look at first
    write_json(staged / CONFIG, {**config, "torch_dtype": str(job.dtype).removeprefix("torch.")})
    copy_beside(job.folder, staged)
    if not (staged / GENERATION).exists():
        write_json(staged / GENERATION, generation_config(job.options))


def _write_mindformers(job: _Job, staged: Path) -> None:
    request = job.request
    names = {name: to_mindformers(name) for name in job.names}
    if request.output.suffix == ".ckpt":
        types = {name: request.dtype or TYPES[job.tensors.kind(name)] for name in names}
        tensors = ((theirs, job.tensors[name].to(types[name])) for name, theirs in names.items())
        write_ckpt(staged / "model.ckpt", tensors)
        return
    limit = sys.maxsize if request.output.suffix in SUFFIXES else request.shard_bytes
    shards = shards_of(job.tensors, names, request.dtype, limit)
    write_shards(staged, shards, job.tensors, request.dtype, workers=request.workers, kind="ms")


def _write_runformer(job: _Job, staged: Path) -> None:
    dtype = job.request.dtype
    model = {name: job.tensors[name].to(dtype or TYPES[job.tensors.kind(name)]) for name in job.names}
    common = {"step": 0, KEY: describe(job.options, job.lora)}
    CheckpointStore(staged, "CKP", Keep()).save(TrainingState.whole(model, {}, common))


def _write_peft(job: _Job, staged: Path) -> None:
    request, lora = job.request, job.lora
    assert lora is not None, "there are adapters"
    shard = Shard(PEFT_WEIGHTS, {name: peft_name(name) for name in job.names})
    write_shards(staged, [shard], job.tensors, request.dtype, workers=1, kind="pt")
    modules = sorted({match[1] for name in job.names if (match := FACTOR.fullmatch(name))})
    write_json(staged / PEFT_CONFIG, peft_config(lora, modules))


_WRITERS: Mapping[Form, Callable[[_Job, Path], None]] = {
    "hf": _write_hf,
    "mindformers": _write_mindformers,
    "runformer": _write_runformer,
    "peft": _write_peft,
}


def _require_same(job: _Job, staged: Path) -> None:
    """See that what was written computes what the input does, on a few tokens.

    Raises:
        CheckpointError: it does not.
    """
    expected = _logits(job, job.source, job.lora)
    written = find_weights(LoadOptions(staged), job.options, as_it_is)
    if job.request.form == "peft":
        written = replace(written, tensors=Combined(written.tensors, job.source.tensors))
    merged = job.written is not job.source
    found = _logits(job, written, None if merged else job.lora)
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    if not error <= (_CLOSE[job.dtype] if merged else 0.0):
        raise CheckpointError(
            f"{job.request.output}: what was written computes otherwise: logits differ by {error:.2g} of the largest",
            hint="nothing was kept; please report this",
        )


@torch.no_grad()
def _logits(job: _Job, source: WeightSource, lora: LoraOptions | None) -> Tensor:
    """Of a few tokens, in float32, by weights rounded to the type that is written."""
    model = build_model(job.options, Precision(), torch.device("cpu"), lora)
    load_weights(source, dict(model.named_parameters()), tied=job.options.tie_embeddings)
    if job.written is job.source:
        for name, parameter in model.named_parameters():
            if name in job.names:
                parameter.copy_(parameter.to(job.request.dtype or parameter.dtype))
    count = min(_TOKENS, job.options.max_positions)
    tokens = torch.arange(count)[None] * (job.options.vocab_size // (count + 1))
    logits: Tensor = model.eval().logits(model(tokens))
    return logits
