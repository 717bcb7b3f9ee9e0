"""Weights on their way into generation: loaded, then cast and laid out as the decode step reads them fastest."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from runformer.checkpoint import find_weights, load_weights
from runformer.config.task import ModelOptions, Task
from runformer.errors import CheckpointError
from runformer.models.build import build_model, initialise
from runformer.models.decoder import TORCH_DTYPES, CausalLM


def load_model(task: Task, options: ModelOptions, device: torch.device) -> CausalLM:
    """The model of a predict task, with weights from ``load_checkpoint`` or else ``pretrained_model_dir``.

    Raises:
        CheckpointError: neither is given, or the weights are missing, damaged or of another model.
    """
    path = task.load.path or task.model.pretrained_dir
    if path is None:
        hint = "give --load_checkpoint, or pretrained_model_dir in the YAML"
        raise CheckpointError("there are no weights to predict with", hint=hint)
    model = build_model(options, task.model.precision, device, task.model.lora)
    if task.model.lora is not None:
        initialise(model, task.seed, adapters_only=True)
    source = find_weights(replace(task.load, path=path), options)
    load_weights(source, dict(model.named_parameters()), tied=options.tie_embeddings)
    prepare_for_generation(model)
    return model


@torch.no_grad()
def prepare_for_generation(model: CausalLM) -> None:
    """Cast weights of products to the dtype they are multiplied in: once, not at every step. Norms keep theirs.

    On a CPU they are also laid out by columns. Shapes, names and values stay; the product with a few rows of
    activations, which is all that decoding does, is up to twice as fast (bfloat16 at batch 1, float32 at batch 8).
    """
    compute = TORCH_DTYPES[model.precision.compute]
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.to(compute)
            if module.weight.device.type == "cpu":
                module.weight.data = _by_columns(module.weight.data)


def _by_columns(weight: Tensor) -> Tensor:
    return weight.t().contiguous().t()
