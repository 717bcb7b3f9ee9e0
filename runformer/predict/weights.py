"""Weights on their way into generation: loaded, then cast and merged as the decode step reads them fastest."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from runformer.checkpoint import find_weights, load_parts
from runformer.config.task import ModelOptions, Task
from runformer.errors import CheckpointError
from runformer.models.build import initialise
from runformer.models.decoder import MLP, TORCH_DTYPES, Attention, CausalLM
from runformer.parallel.compose import compose
from runformer.parallel.mesh import Mesh
from runformer.parallel.model import ParallelModel
from runformer.predict.packed import pack_weights


def load_model(task: Task, options: ModelOptions, mesh: Mesh) -> ParallelModel:
    """This process's part of a predict task's model, with ``load_checkpoint``'s weights or ``pretrained_model_dir``'s.

    Raises:
        CheckpointError: neither is given, or the weights are missing, damaged or of another model.
    """
    path = task.load.path or task.model.pretrained_dir
    if path is None:
        hint = "give --load_checkpoint, or pretrained_model_dir in the YAML"
        raise CheckpointError("there are no weights to predict with", hint=hint)
    model = compose(options, task.model.precision, task.model.lora, mesh)
    (stage,) = model.stages
    if task.model.lora is not None:
        initialise(stage, task.seed, model.parts, adapters_only=True)
    find_weights(
        replace(task.load, path=path, base=task.model.pretrained_dir),
        options,
        lambda source: load_parts(source, model),
        mesh.world,
    )
    prepare_for_generation(stage)
    return model


@torch.no_grad()
def prepare_for_generation(model: CausalLM) -> None:
    """Cast weights of products to the dtype they are multiplied in, once, not at every step; norms keep theirs.

    Layers that read the same input become one, since a decode step is many small products and each has to be started.
    On a CPU weights are also laid out as its library reads them fastest.
    """
    compute = TORCH_DTYPES[model.precision.compute]
    for module in list(model.modules()):
        if isinstance(module, Attention | MLP):
            module.merge()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.to(compute)
    pack_weights(model)
