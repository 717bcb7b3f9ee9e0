"""How much memory of a device a task takes, by kind, without taking it.

What a layer keeps for its backward pass is not computed from a formula but seen: one layer runs on fake tensors,
which have shapes and no memory, and what autograd saves is added up. The estimate follows the code, then, and not
what somebody once wrote down about it. It is of eager execution; compiled code may keep less.

Shape suffixes: B rows, L positions, D hidden size, K head size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from runformer.config.task import ModelOptions, ModelTask, ParallelOptions, Precision, TrainTask
from runformer.models.decoder import TORCH_DTYPES, CausalLM
from runformer.models.lora import add_lora
from runformer.train.loss import chunk_elements

_MOMENT_BYTES = 8  # of AdamW, for a number that is trained: two of float32


def training_memory(
    model: ModelTask, options: ModelOptions, train: TrainTask, length: int, parallel: ParallelOptions, device: str
) -> Mapping[str, int]:
    """Bytes of the fullest device at the peak of a training step, by kind.

    Args:
        model: for precision and adapters.
        options: the whole model's shape.
        train: for the rows of a batch.
        length: positions in a row.
        parallel: how the model is laid over devices.
        device: ``cpu``, ``cuda`` or ``npu``; decides how many logits are held at a time.
    """
    share = _share(options, parallel)
    with FakeTensorMode(), torch.device("cpu"):
        part = _one_layer(share, model)
        layer, ends = _parameters(part.model.layers), _parameters(_ends(part, parallel))
        layers = _most_layers(options, parallel)
        kept = _saved_by_layer(part, train.batch_size, length // parallel.context, parallel)
    positions = train.batch_size * length // parallel.context // (parallel.tensor if parallel.sequence_parallel else 1)
    between = positions * options.hidden_size * TORCH_DTYPES[model.precision.compute].itemsize
    again = _recomputed(layers, parallel.recompute)
    in_flight = min(parallel.pipeline, train.accumulation_steps)  # micro-batches that the first stage has begun
    trainable = layer["trainable"] * layers + ends["trainable"]
    moments = _MOMENT_BYTES * (layer["trained numbers"] * layers + ends["trained numbers"])
    return {
        "weights": layer["all"] * layers + ends["all"],
        "gradients": trainable,
        "optimizer states": math.ceil(moments / parallel.data) if parallel.shard_optimizer else moments,
        # A recomputed layer keeps its input, but for the one whose turn it is.
        "activations": (kept * (layers - again) + between * again) * in_flight + (kept if again else 0),
        "logits": _logits(share, model.precision, train.batch_size * length // parallel.context, device),
    }


def prediction_memory(
    options: ModelOptions, precision: Precision, rows: int, length: int, parallel: ParallelOptions
) -> Mapping[str, int]:
    """Bytes of a device while ``rows`` prompts are answered together, each text at most ``length`` tokens long."""
    share = _share(options, parallel)
    width = TORCH_DTYPES[precision.compute].itemsize
    rows = math.ceil(rows / parallel.data)
    elements = _elements(share, precision)
    cache = 2 * options.num_layers * rows * share.num_kv_heads * length * share.head_dim
    return {
        "weights": elements * width,
        "keys and values": cache * width,
        "logits": rows * share.vocab_size * 4,
    }


def evaluation_memory(
    model: ModelTask, options: ModelOptions, rows: int, length: int, parallel: ParallelOptions, device: str
) -> Mapping[str, int]:
    """Bytes of a device while it evaluates batches of ``rows`` rows of ``length`` positions; see training_memory."""
    share, precision = _share(options, parallel), model.precision
    return {
        "weights": _elements(share, precision) * TORCH_DTYPES[precision.parameters].itemsize,
        "logits": _logits(share, precision, rows * length, device),
    }


def _elements(options: ModelOptions, precision: Precision) -> int:
    """The number of parameters, adapters aside."""
    with torch.device("meta"):
        part = CausalLM(replace(options, num_layers=1), precision)
    in_layers = sum(parameter.numel() for parameter in part.model.layers.parameters()) * options.num_layers
    return in_layers + sum(parameter.numel() for module in _modules(part) for parameter in module.parameters())


def _share(options: ModelOptions, parallel: ParallelOptions) -> ModelOptions:
    """The model as one device of the tensor dimension holds it."""
    return replace(
        options,
        num_heads=math.ceil(options.num_heads / parallel.tensor),
        num_kv_heads=math.ceil(options.num_kv_heads / parallel.tensor),
        intermediate_size=math.ceil(options.intermediate_size / parallel.tensor),
        vocab_size=math.ceil(options.vocab_size / parallel.tensor),
    )


def _most_layers(options: ModelOptions, parallel: ParallelOptions) -> int:
    return math.ceil(options.num_layers / parallel.pipeline)


def _one_layer(options: ModelOptions, model: ModelTask) -> CausalLM:
    part = CausalLM(replace(options, num_layers=1), model.precision)
    if model.lora is not None:
        add_lora(part, model.lora)
    for name, parameter in part.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.to(TORCH_DTYPES[model.precision.parameters])
    return part.train()


def _modules(part: CausalLM) -> list[nn.Module]:
    """Everything but the layers."""
    modules = (part.model.embed_tokens, part.model.norm, part.lm_head)
    return [module for module in modules if module is not None]


def _ends(part: CausalLM, parallel: ParallelOptions) -> nn.ModuleList:
    """What the fuller end of a pipeline holds besides its layers: the embedding, or the norm and the output layer."""
    modules = _modules(part)
    return nn.ModuleList(modules if parallel.pipeline == 1 else modules[:1])


def _parameters(module: nn.Module) -> dict[str, int]:
    """Bytes of all parameters, bytes of those that are trained, and how many numbers those are."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return {
        "all": sum(parameter.numel() * parameter.element_size() for parameter in module.parameters()),
        "trainable": sum(parameter.numel() * parameter.element_size() for parameter in trained),
        "trained numbers": sum(parameter.numel() for parameter in trained),
    }


def _saved_by_layer(part: CausalLM, rows: int, length: int, parallel: ParallelOptions) -> int:
    """Bytes that one layer keeps for its backward pass, besides its parameters and the rotary tables."""
    options, precision = part.options, part.precision
    layer = part.layers[0]
    rotary, compute = TORCH_DTYPES[precision.rotary], TORCH_DTYPES[precision.compute]
    rope = tuple(torch.empty(length, 1, options.head_dim, dtype=rotary) for _ in range(2))
    x_BLD = torch.empty(rows, length, options.hidden_size, dtype=compute, requires_grad=True)
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        saved.setdefault(_memory(tensor), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x_BLD * 1, rope, None, None)
    for tensor in (*rope, *layer.parameters()):  # shared by all layers, or counted as weights
        saved.pop(_memory(tensor), None)
    # What lies between layers is split by sequence parallelism; the rest is split already, as the layer is a share.
    split = parallel.tensor if parallel.sequence_parallel else 1
    sizes = ((tensor.untyped_storage().nbytes(), tensor.numel() == x_BLD.numel()) for tensor in saved.values())
    return sum(math.ceil(size / split) if between else size for size, between in sizes)


def _recomputed(layers: int, recompute: bool | tuple[int, ...]) -> int:
    """How many of the first stage's layers are recomputed."""
    if isinstance(recompute, bool):
        return layers if recompute else 0
    return min(layers, recompute[0]) if recompute else 0


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _logits(options: ModelOptions, precision: Precision, positions: int, device: str) -> int:
    """The loss works through the logits in chunks, in float32 and in the compute dtype, and keeps a gradient a row."""
    width = TORCH_DTYPES[precision.compute].itemsize
    chunk = min(chunk_elements(device), positions * options.vocab_size)
    head = options.vocab_size * options.hidden_size
    cast = head * width if precision.parameters != precision.compute else 0
    return chunk * (4 + width) + positions * options.hidden_size * width + cast
