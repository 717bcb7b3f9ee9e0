"""Every parallelism in one place and one order.

Outline of a stage, without memory → recomputed layers → tensor split → weights shared out over copies → memory →
(weights and compiled layers, by whoever composes) → whole copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from runformer.config.layout import Layers, ParallelOptions
from runformer.config.task import LoraOptions, ModelOptions, Precision
from runformer.errors import ConfigError
from runformer.models.build import materialise, outline
from runformer.models.decoder import CausalLM
from runformer.models.part import Part, Stage
from runformer.parallel.group import Group, alone
from runformer.parallel.mesh import V_SCHEDULES, Mesh, lay_out
from runformer.parallel.model import ParallelModel
from runformer.parallel.pipeline import Pipeline, stages_of
from runformer.parallel.sharded import share_weights
from runformer.parallel.tensor import TensorSplit, split_tensors

_TABLE = "model.embed_tokens.weight"


def compose(options: ModelOptions, precision: Precision, lora: LoraOptions | None, mesh: Mesh) -> ParallelModel:
    """This process's part of a model, in memory that holds whatever it held.

    Args:
        options: the shape of the whole model.
        precision: the dtype of each part of it.
        lora: adapters on it.
        mesh: this process among the others.

    Raises:
        ConfigError: the model is too small for the layout, which is known late where a folder describes it.
    """
    layout = mesh.options
    _require_room(options, layout)
    stages = stages_of(options.num_layers, layout.pipeline, layout.chunks, layout.extra_layers)
    indices = stage_indices(mesh.place.pipeline, layout)
    models = [outline(options, precision, lora, stages[index]) for index in indices]
    for index, model in zip(indices, models, strict=True):
        _recompute(model, stages[index], index, layout)
    splits = [split_tensors(model, mesh.tensor, layout) for model in models]
    if layout.zero >= 2 and layout.shards > 1:
        share_weights(models, mesh)
    for model in models:
        materialise(model, mesh.world.device)
    if len(models) > 1 and models[-1].model.embed_tokens is not None and models[0].model.stage.first:
        models[-1].model.embed_tokens = models[0].model.embed_tokens  # a tied embedding, with both ends here
    pipeline = None
    if layout.pipeline > 1:
        spread = layout.tensor if layout.sequence_parallel else 1
        schedule = layout.schedule
        pipeline = Pipeline(models, indices, len(stages), mesh.pipeline, schedule=schedule, spread=spread)
    return ParallelModel(
        models,
        mesh,
        _parts_of(models, splits, layout, mesh.shards.rank),
        dict(outline(options, precision, lora).named_parameters()),
        partial=frozenset().union(*(split.partial for split in splits)),
        overlapping=frozenset().union(*(split.overlapping for split in splits)),
        vocabulary=splits[-1].vocabulary,
        pipeline=pipeline,
    )


def _require_room(options: ModelOptions, layout: ParallelOptions) -> None:
    count, extra = layout.pipeline * layout.chunks, layout.extra_layers
    if count > options.num_layers:
        text = f"parallel_config.pipeline_stage: {count} stages, more than the model's {options.num_layers} layers"
        raise ConfigError(text)
    if layout.tensor > options.num_heads:
        text = f"is {layout.tensor}, more than the model's {options.num_heads} attention heads"
        raise ConfigError(f"parallel_config.model_parallel {text}")
    if extra is not None and (len(extra) != count or sum(extra) != options.num_layers % count):
        text = f"does not give {options.num_layers} layers to {count} stages: one number each, beyond an equal number"
        raise ConfigError(f"model.model_config.offset {text}")


def _recompute(model: CausalLM, stage: Stage, index: int, layout: ParallelOptions) -> None:
    """Let layers keep less for their backward pass: their input only, or all but some tensors."""
    whole = chosen(layout.recompute, stage, index)
    model.model.recomputed = frozenset(stage.layers[:whole])
    for place, layer in enumerate(model.layers.values()):
        layer.mlp.recalls = whole <= place < chosen(layout.recompute_products, stage, index)
        layer.recalls = whole <= place < chosen(layout.recompute_norms, stage, index)


def chosen(layers: Layers, stage: Stage, index: int) -> int:
    """How many layers of a stage, the ``index``-th of all, are meant; from its first one on."""
    if isinstance(layers, bool):
        return len(stage.layers) if layers else 0
    return min(len(stage.layers), layers[index]) if index < len(layers) else 0


def outline_parts(
    options: ModelOptions,
    precision: Precision,
    lora: LoraOptions | None,
    layout: ParallelOptions,
    stages: Sequence[Stage],
    tensor: int,
    shard: int,
) -> dict[str, Part]:
    """What a process of a layout holds of each parameter.

    Args:
        options: the shape of the whole model.
        precision: the dtype of each part of it.
        lora: adapters on it.
        layout: the sizes.
        stages: those of the process.
        tensor: its number among those that share its layers.
        shard: its number among the copies that share out weights.
    """
    group = Group(tensor, layout.tensor, torch.device("meta"))
    models = [outline(options, precision, lora, stage) for stage in stages]
    splits = [split_tensors(model, group, layout) for model in models]
    return _parts_of(models, splits, layout, shard)


def undivided(model: CausalLM) -> ParallelModel:
    """A model that this process has alone, and whole."""
    whole = dict(model.named_parameters())
    parts = {name: Part.whole(tuple(parameter.shape)) for name, parameter in whole.items()}
    mesh = lay_out(ParallelOptions(), alone(model.device))
    return ParallelModel([model], mesh, parts, whole, vocabulary=(0, model.options.vocab_size))


def stage_indices(pipeline: int, layout: ParallelOptions) -> list[int]:
    """Which stages a process has, of all in the order of the layers: every process one, then every process another.

    In a V all processes have one on the way there, and one on the way back.
    """
    if layout.schedule in V_SCHEDULES:
        return [pipeline, 2 * layout.pipeline - 1 - pipeline]
    return [chunk * layout.pipeline + pipeline for chunk in range(layout.chunks)]


def _parts_of(
    models: Sequence[CausalLM], splits: Sequence[TensorSplit], layout: ParallelOptions, shard: int
) -> dict[str, Part]:
    """What is held of each parameter; of a tied embedding the first stage owns what the last one has, too."""
    parts: dict[str, Part] = {}
    for model, split in zip(models, splits, strict=True):
        parts |= split.parts
        if _TABLE in split.parts and not (model.model.stage.first or models[0].model.stage.first):
            parts[_TABLE] = replace(split.parts[_TABLE], owned=())
    if layout.zero < 2 or layout.shards == 1:
        return parts
    return {name: part.shared(shard, layout.shards) for name, part in parts.items()}
