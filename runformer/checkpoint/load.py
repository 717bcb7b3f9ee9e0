"""Copying stored weights into a model."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from runformer.checkpoint.adapters import Merged
from runformer.checkpoint.foreign.foreign_tensors import MOMENTS
from runformer.checkpoint.foreign.mindformers import SCALARS
from runformer.checkpoint.source import WeightSource
from runformer.checkpoint.tensors import TYPES, NamedTensors, some
from runformer.errors import CheckpointError
from runformer.models.names import is_parameter_name
from runformer.models.part import Box, Part
from runformer.parallel.model import ParallelModel

logger = logging.getLogger(__name__)

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

# Rotary tables, which some files carry, follow from the options; the others belong to a training state.
_NO_WEIGHT = re.compile(r"(.*\.)?rotary_emb\.inv_freq|" + "|".join(rf"{re.escape(p)}.*" for p in MOMENTS.values()))
_ADAPTER = re.compile(r".*\.lora_[AB]\.weight")

# Which option of model_config decides a dimension: (a parameter's name, dimension, option).
_SIZES = (
    (r".*\.lora_A\.weight", 0, "pet_config.lora_rank"),
    (r".*\.lora_B\.weight", 1, "pet_config.lora_rank"),
    (r"model\.embed_tokens\.weight|lm_head\.weight", 0, "vocab_size"),
    (r".*\.[qk]_norm\.weight", 0, "head_dim"),
    (r"model\.embed_tokens\.weight|lm_head\.weight|.*norm\.weight", -1, "hidden_size"),
    (r".*\.(gate|up)_proj\.(weight|bias|lora_B\.weight)", 0, "intermediate_size"),
    (r".*\.down_proj\.(weight|lora_A\.weight)", 1, "intermediate_size"),
    (r".*\.(q|k|v|gate|up)_proj\.(weight|lora_A\.weight)", 1, "hidden_size"),
    (r".*\.[kv]_proj\.(weight|bias|lora_B\.weight)", 0, "n_kv_heads"),
    (r".*\.q_proj\.(weight|bias|lora_B\.weight)", 0, "num_heads"),
    (r".*\.o_proj\.(weight|lora_A\.weight)", 1, "num_heads"),
    (r".*", 0, "hidden_size"),
)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did.

    Attributes:
        loaded: how many parameters the weights hold.
        fresh_adapters: LoRA factors that the weights do not have, left as they were.
        unexpected: stored tensors that the model has no place for.
    """

    loaded: int
    fresh_adapters: tuple[str, ...]
    unexpected: tuple[str, ...]


@torch.no_grad()
def load_weights(
    source: WeightSource,
    parameters: Mapping[str, Tensor],
    *,
    tied: bool,
    whole: Mapping[str, Tensor] | None = None,
    parts: Mapping[str, Part] = MappingProxyType({}),
) -> LoadReport:
    """Fill ``parameters`` in place, each cast to its own dtype and device.

    Names and shapes are checked before the first is changed. One tensor at a time is in memory.

    Args:
        source: the weights.
        parameters: the model's, by name.
        tied: the model has no ``lm_head.weight`` since its embedding serves for it.
        whole: all parameters of the whole model, on any device, where only some of them, or parts of them, are here.
        parts: which those are.

    Raises:
        CheckpointError: as ``check_weights``; a tensor is not a floating-point one; a file is damaged.
    """
    whole = parameters if whole is None else whole
    source = _merged(source, whole)
    report = check_weights(source, whole, tied=tied)
    for name, parameter in parameters.items():
        if name in source.tensors:
            _copy(source.tensors, name, parameter, parts.get(name))
    _log(source, report)
    return report


def load_parts(source: WeightSource, model: ParallelModel) -> LoadReport:
    """Fill what this process holds of a model.

    Raises:
        CheckpointError: as ``load_weights``.
    """
    return load_weights(source, model.held(), tied=model.options.tie_embeddings, whole=model.whole, parts=model.parts)


def check_weights(source: WeightSource, parameters: Mapping[str, Tensor], *, tied: bool) -> LoadReport:
    """Whether weights fit a model, by their names and shapes alone; ``parameters`` may be on the meta device.

    Raises:
        CheckpointError: a parameter is missing (LoRA factors may be) or has another shape; the weights hold
            adapters, biases, norms or an output layer that the model lacks.
    """
    source = _merged(source, parameters)
    tensors = source.tensors
    missing = [name for name in parameters if name not in tensors]
    unexpected = [name for name in tensors if name not in parameters and not _belongs_elsewhere(name)]
    if source.common is not None:  # then <key>.<parameter> is the state of some optimizer
        unexpected = [name for name in unexpected if name.partition(".")[2] not in parameters]
    if tied and HEAD in unexpected:
        _require_same_head(source)
        unexpected.remove(HEAD)
    _refuse_missing(source, [name for name in missing if not _ADAPTER.fullmatch(name)], parameters, unexpected)
    _refuse_left_out(source, unexpected, parameters)
    found = [name for name in parameters if name in tensors]
    for name in found:
        _require_shape(tensors, name, tuple(parameters[name].shape))
    return LoadReport(len(found), tuple(missing), tuple(unexpected))


def _merged(source: WeightSource, parameters: Mapping[str, Tensor]) -> WeightSource:
    """Adapters that the model has no place for are added to its weights, where it is known how strongly they count."""
    adapters = any(_ADAPTER.fullmatch(name) for name in source.tensors)
    if source.lora is None or not adapters or any(_ADAPTER.fullmatch(name) for name in parameters):
        return source
    logger.info("the LoRA adapters of %s are merged into its weights", source.path)
    return replace(source, tensors=Merged(source.tensors, source.lora.alpha / source.lora.rank), lora=None)


def _log(source: WeightSource, report: LoadReport) -> None:
    for notice in source.notices:
        logger.warning("passed over: %s", notice)
    logger.info("weights from %s", source.path)
    if report.unexpected:
        logger.warning("not loaded, since the model has no place for them: %s", some(report.unexpected))
    if report.fresh_adapters:
        logger.info("not in these weights, so freshly initialised: %s", some(report.fresh_adapters))


def _belongs_elsewhere(name: str) -> bool:
    return name in SCALARS or _NO_WEIGHT.fullmatch(name) is not None


def _copy(tensors: NamedTensors, name: str, parameter: Tensor, part: Part | None) -> None:
    kind = tensors.kind(name)
    if kind not in TYPES or not TYPES[kind].is_floating_point:
        raise CheckpointError(
            f"{tensors.origin(name)}: the tensor {name} is of type {kind}, not a floating-point one",
            hint="quantised weights are not supported: take float32, bfloat16 or float16 ones",
        )
    for box, here in (part or Part.whole(tuple(parameter.shape))).boxes(Box.of(tuple(parameter.shape))):
        tensors.fill(name, box, parameter[here.place])


def _require_same_head(source: WeightSource) -> None:
    tensors = source.tensors
    if EMBEDDING in tensors and torch.equal(tensors[HEAD], tensors[EMBEDDING]):
        return
    raise CheckpointError(
        f"{tensors.origin(HEAD)}: an output layer of its own, but the model ties it to the embedding",
        hint="set tie_word_embeddings to False (model.model_config in the YAML, or config.json)",
    )


def _refuse_missing(
    source: WeightSource, missing: list[str], parameters: Mapping[str, Tensor], unexpected: list[str]
) -> None:
    if not missing:
        return
    if missing == [HEAD]:
        raise CheckpointError(
            f"{source.path}: {HEAD} is missing",
            hint="if the model ties its output layer to the embedding, set tie_word_embeddings to True",
        )
    hint = "is it for another model? num_layers, qkv_has_bias or the family may differ"
    if unexpected:
        hint += f"; it holds instead: {some(unexpected)}"
    raise CheckpointError(
        f"{source.path}: {len(missing)} of {len(parameters)} tensors missing: {some(missing)}", hint=hint
    )


def _refuse_left_out(source: WeightSource, unexpected: list[str], parameters: Mapping[str, Tensor]) -> None:
    """Refuse adapters, biases and norms of the model's own layers: without them it would compute something else."""
    adapters = [name for name in unexpected if _ADAPTER.fullmatch(name)]
    if adapters:
        raise CheckpointError(
            f"{source.path}: LoRA adapters that the model has no place for: {some(adapters)}",
            hint="give the model.model_config.pet_config that they were trained with",
        )
    layers = {_layer(name) for name in parameters}
    left_out = [name for name in unexpected if is_parameter_name(name) and _layer(name) in layers]
    if left_out:
        raise CheckpointError(
            f"{source.path}: {len(left_out)} tensors that the model's layers have no place for: {some(left_out)}",
            hint="is it for another model? qkv_has_bias or the family may differ",
        )


def _layer(name: str) -> str:
    return ".".join(name.split(".")[:3])


def _require_shape(tensors: NamedTensors, name: str, expected: tuple[int, ...]) -> None:
    stored = tensors.shape(name)
    if stored != expected:
        hint = f"{_deciding_option(name, stored, expected)} of model.model_config or config.json does not fit them"
        if len(stored) == len(expected) and all(
            held and not full % held for held, full in zip(stored, expected, strict=True)
        ):
            hint += "; or, where MindFormers' ranks have slices, --src_strategy_path_or_dir is missing"
        raise CheckpointError(
            f"{tensors.origin(name)}: the shape of {name} is {stored}, the model needs {expected}", hint=hint
        )


def _deciding_option(name: str, stored: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """The option by which a dimension that differs is decided; the likeliest where several are."""
    if stored and len(stored) == len(expected):
        for pattern, dimension, option in _SIZES:
            if re.fullmatch(pattern, name) and stored[dimension] != expected[dimension]:
                return option
    return "the kind of model"
