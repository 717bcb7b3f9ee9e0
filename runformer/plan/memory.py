"""How much memory of a device a task takes, by kind, without taking it.

What a layer keeps for its backward pass is not computed from a formula but seen: one layer runs on fake tensors,
which have shapes and no memory, and what autograd saves is added up. The estimate follows the code, then, and not
what somebody once wrote down about it. It is of eager execution; compiled code may keep less.

Shape suffixes: B rows, L positions, C positions between blocks of this device, D hidden size, G key-value heads, K head
size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from runformer.config.layout import ParallelOptions
from runformer.config.task import LoraOptions, ModelOptions, ModelTask, Precision, TrainTask
from runformer.models.decoder import TORCH_DTYPES, CausalLM, DecoderLayer
from runformer.models.lora import add_lora
from runformer.models.part import Stage
from runformer.parallel.compose import chosen
from runformer.parallel.mesh import Place
from runformer.parallel.shards import BUCKET_ELEMENTS
from runformer.plan.share import Share, Size, share_of
from runformer.train.loss import chunk_elements

_MOMENT_BYTES = 8  # of AdamW, for a number that is trained: two of float32
# Of what tensors take on a CPU, what lies unused between them, as benchmarks/memory.py measures it: without shared
# weights, and with them, which come and go in messages of many sizes.
_GAPS, _GAPS_SHARING = 0.11, 0.2
_GATHERED_AHEAD = 2  # layers whose weights are whole at a time, where all others are shared out

Kinds = Mapping[str, int]
"""Bytes by kind: weights, gradients, optimizer states, activations, buffers."""


def training_memory(
    model: ModelTask, options: ModelOptions, train: TrainTask, length: int, layout: ParallelOptions, device: str
) -> Kinds:
    """Bytes of the fullest device at the peak of a training step, by kind; arguments as of ``training_memories``."""
    return max(training_memories(model, options, train, length, layout, device), key=lambda kinds: sum(kinds.values()))


def training_memories(
    model: ModelTask, options: ModelOptions, train: TrainTask, length: int, layout: ParallelOptions, device: str
) -> list[Kinds]:
    """Bytes at the peak of a training step, by kind, of the fullest device of each place in the pipeline.

    Of those that share layers the first one is the fullest.

    Args:
        model: for precision and adapters.
        options: the whole model's shape.
        train: for the rows of a batch.
        length: positions in a row.
        layout: how the model is laid over devices.
        device: ``cpu``, ``cuda`` or ``npu``; decides how many logits are held at a time.
    """
    places = [Place(pipeline=number) for number in range(layout.pipeline)]
    return [rank_memory(model, options, train, length, layout, device, place) for place in places]


def rank_memory(
    model: ModelTask,
    options: ModelOptions,
    train: TrainTask,
    length: int,
    layout: ParallelOptions,
    device: str,
    place: Place,
) -> Kinds:
    """Bytes of the device at a place of the layout, at the peak of a training step; see ``training_memories``."""
    share = share_of(options, model.precision, model.lora, layout, place)
    step = _Step(share, model.precision, layout, train.batch_size, length // layout.context, train.accumulation_steps)
    fullest = max(_moments(step, model, place, device), key=lambda kinds: sum(kinds.values()))
    if device == "cpu":
        fullest["buffers"] += int((_GAPS if step.shards == 1 else _GAPS_SHARING) * sum(fullest.values()))
        if train.save is not None and train.save.behind:  # a copy of what this device writes, in its own memory
            fullest["buffers"] += (step.all.all + _MOMENT_BYTES * step.all.numbers) // layout.replicas
    return fullest


@dataclass(frozen=True, slots=True)
class _Step:
    """What a device does in a step: its share of the model, and the rows and positions of each micro-batch."""

    share: Share
    precision: Precision
    layout: ParallelOptions
    rows: int
    length: int
    micro_batches: int

    @property
    def all(self) -> Size:
        """Its parameters."""
        return self.share.layer * self.share.layers + self.share.ends

    @property
    def shards(self) -> int:
        """Over how many devices weights are shared out."""
        return self.layout.shards if self.layout.zero >= 2 else 1

    @property
    def width(self) -> int:
        """Bytes of a number that is computed with."""
        return TORCH_DTYPES[self.precision.compute].itemsize

    @property
    def between(self) -> int:
        """Bytes of the hidden states between two layers."""
        spread = self.layout.tensor if self.layout.sequence_parallel else 1
        return self.rows * (self.length // spread) * self.share.options.hidden_size * self.width

    def constant(self) -> dict[str, int]:
        """What is there all the time."""
        moments = _MOMENT_BYTES * self.all.numbers
        return {
            "weights": math.ceil(self.all.all / self.shards),
            "gradients": 0,
            "optimizer states": math.ceil(moments / self.layout.shards),
            "activations": 0,
            "buffers": 0,
        }

    def gathered(self) -> int:
        """Bytes of whole weights that were shared out, and of the message with the next ones."""
        if self.shards == 1:
            return 0
        layer, layers = self.share.layer.all, self.share.layers
        held = layers if self.layout.zero == 2 else min(layers, _GATHERED_AHEAD)
        return self.share.ends.all + (held + 1) * layer


def _moments(step: _Step, model: ModelTask, place: Place, device: str) -> Iterator[dict[str, int]]:
    """Memory by kind at each time of a step when it may be at its fullest."""
    share, layout = step.share, step.layout
    copies = layout.replicas > 1 and layout.pipeline == 1 and step.shards == 1  # these have their messages' memory
    kinds = step.constant()
    if copies or step.micro_batches > 1:  # room for what is added up is made beforehand
        kinds["gradients"] = math.ceil(step.all.trained / step.shards)
    kinds["buffers"] = step.gathered()
    kept, again = _saved_by_layer(step, model), _recomputed(step)
    activations = _activations(step, kept.all * (share.layers - again) - _recalled(step, kept), again, place)
    if share.last:
        kinds["buffers"] += step.rows * step.length * share.options.hidden_size * step.width + share.head.trained
        scores = _scores(share.options, step.precision, step.rows * step.length, device)
        yield {**kinds, "activations": activations, "buffers": kinds["buffers"] + scores}
    if again:
        activations += kept.all  # those of the layer whose turn it is
    buffers = kinds["buffers"] + _backward_of_a_layer(step)
    yield {**kinds, "activations": activations, "buffers": buffers}
    done = step.all.trained - share.ends.trained - share.layer.trained + share.head.trained
    first = step.between if again == share.layers else 0
    yield {**kinds, "gradients": math.ceil(done / step.shards), "activations": kept.all + first, "buffers": buffers}
    yield _end_of_backward(step)


def _end_of_backward(step: _Step) -> dict[str, int]:
    kinds = step.constant()
    kinds["gradients"] = math.ceil(step.all.trained / step.shards)
    if step.shards > 1:  # the first layer's, whole and as a message, and those of both ends
        kinds["buffers"] = step.gathered() + 2 * step.share.layer.trained + step.share.ends.trained
    elif step.layout.shards > 1:  # updated weights go around: what is sent, what comes, and that in one piece
        largest = max(step.share.head.all, min(4 * BUCKET_ELEMENTS, step.all.all))
        kinds["buffers"] = 2 * largest + math.ceil(largest / step.layout.shards)
    else:
        kinds["buffers"] = _backward_of_a_layer(step)
    return kinds


def _backward_of_a_layer(step: _Step) -> int:
    """Bytes of gradients inside of a layer, around its widest part, and of one weight."""
    options = step.share.options
    widest = step.rows * step.length * options.intermediate_size * step.width
    return 3 * widest + options.intermediate_size * options.hidden_size * step.width


def _in_flight(step: _Step, place: Place) -> int:
    """Micro-batches whose forward pass is done and whose backward pass is not, at most; see ``_begun``."""
    return min(step.micro_batches, _begun(step, place)) if step.layout.pipeline > 1 else 1


def _begun(step: _Step, place: Place) -> int:
    layout = step.layout
    waits = layout.pipeline - place.pipeline
    return {"1F1B": waits, "GPipe": step.micro_batches, "LoopedBFS": step.micro_batches}.get(
        layout.schedule, layout.pipeline
    )


def _activations(step: _Step, kept: int, again: int, place: Place) -> int:
    """Bytes that this device keeps for backward passes when it keeps the most.

    For each micro-batch ``kept``, and of ``again`` layers the inputs.
    """
    of_one = kept + step.between * again
    if step.share.last:
        of_one += 2 * step.between  # what the last norm gets and gives
    stages = step.layout.chunks
    units = _in_flight(step, place) * stages
    if step.layout.schedule == "Interleaved1F1B":
        later = 2 * (step.layout.pipeline - 1 - place.pipeline)
        units = min(step.micro_batches * stages, (stages - 1) * step.layout.pipeline + later + 1)
    return math.ceil(of_one * units / stages)


def _recomputed(step: _Step) -> int:
    """How many of this device's layers are recomputed."""
    return sum(chosen(step.layout.recompute, *stage) for stage in _stages(step))


def _stages(step: _Step) -> Iterator[tuple[Stage, int]]:
    return zip(step.share.stages, step.share.indices, strict=True)


def _recalled(step: _Step, kept: _Kept) -> int:
    """Bytes that this device's layers do not keep of what they would, where they are not recomputed whole."""
    layout, spared = step.layout, 0
    for of_each, layers in ((kept.products, layout.recompute_products), (kept.norms, layout.recompute_norms)):
        for stage in _stages(step):
            spared += of_each * max(0, chosen(layers, *stage) - chosen(layout.recompute, *stage))
    return spared


class _Kept(NamedTuple):
    """Bytes that a layer keeps for its backward pass; and of these, what it keeps of its gate and of its norms."""

    all: int
    products: int
    norms: int


def _saved_by_layer(step: _Step, model: ModelTask) -> _Kept:
    """What one layer keeps for its backward pass, besides its parameters and the rotary tables."""
    layout, reads = step.layout, step.share.heads.reads
    spread = layout.tensor if layout.sequence_parallel else 1
    options = replace(step.share.options, num_layers=1)
    reads = None if reads is None else tuple(reads)
    return _saved(options, reads, step.precision, model.lora, step.rows, step.length, spread, layout.context)


@cache  # a search asks for the same ones again and again
def _saved(
    options: ModelOptions,
    reads: tuple[int, ...] | None,
    precision: Precision,
    lora: LoraOptions | None,
    rows: int,
    length: int,
    spread: int,
    context: int,
) -> _Kept:
    """Of a model of one layer; ``spread`` ranks share positions between blocks, ``context`` ranks each sequence."""
    with FakeTensorMode(), torch.device("cpu"):
        layer = _fake_layer(options, precision, lora, reads, spread)
        made: dict[str, list[Tensor]] = {"products": [], "norms": []}
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, given: made["products"].append(given[0]))
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.register_forward_hook(lambda _, __, out: made["norms"].append(out))
        rotary, compute = TORCH_DTYPES[precision.rotary], TORCH_DTYPES[precision.compute]
        rope = tuple(torch.empty(length, 1, options.head_dim, dtype=rotary) for _ in range(2))
        x_BCD = torch.empty((rows, length // spread, options.hidden_size), dtype=compute, requires_grad=True)
        cache = _GatheredKeys(context) if context > 1 else None
        saved: dict[int, Tensor] = {}

        def note(tensor: Tensor) -> Tensor:
            saved.setdefault(_memory(tensor), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(x_BCD * 1, rope, None, cache)
        for tensor in (*rope, *layer.parameters()):  # shared by all layers, or counted as weights
            saved.pop(_memory(tensor), None)
        kept = {memory: tensor.untyped_storage().nbytes() for memory, tensor in saved.items()}
        parts = {name: sum(kept.get(_memory(tensor), 0) for tensor in tensors) for name, tensors in made.items()}
        return _Kept(sum(kept.values()), **parts)


class _GatheredKeys:
    """Keys and values of all who share a sequence, as context parallelism gathers them."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks

    def update(self, keys_BGCK: Tensor, values_BGCK: Tensor) -> tuple[Tensor, Tensor]:
        """As many times as many positions."""
        keys_BGSK, values_BGSK = (x.repeat(1, 1, self._ranks, 1) for x in (keys_BGCK, values_BGCK))
        return keys_BGSK, values_BGSK


def _fake_layer(
    options: ModelOptions, precision: Precision, lora: LoraOptions | None, reads: tuple[int, ...] | None, spread: int
) -> DecoderLayer:
    """A layer as this device has it; where positions between blocks are shared out, its blocks gather them."""
    part = CausalLM(options, precision)
    if lora is not None:
        add_lora(part, lora)
    for name, parameter in part.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.to(TORCH_DTYPES[precision.parameters])
    layer = part.train().layers[0]
    layer.self_attn.kv_heads_H = None if reads is None else torch.tensor(reads)
    if spread > 1:
        for block in (layer.self_attn, layer.mlp):
            block.register_forward_pre_hook(lambda _, given: (torch.cat([given[0]] * spread, 1), *given[1:]))
            block.register_forward_hook(lambda _, __, out: out[:, : out.shape[1] // spread].clone())
    return layer


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _scores(options: ModelOptions, precision: Precision, positions: int, device: str) -> int:
    """The loss works through the scores of tokens in chunks, twice in float32 and once in the compute dtype.

    Meanwhile the output layer's weight is there in the compute dtype, too.
    """
    width = TORCH_DTYPES[precision.compute].itemsize
    chunk = min(chunk_elements(device), positions * options.vocab_size)
    head = options.vocab_size * options.hidden_size
    return chunk * (8 + width) + (head * width if precision.parameters != precision.compute else 0)


def prediction_memory(
    options: ModelOptions, precision: Precision, rows: int, length: int, layout: ParallelOptions
) -> Kinds:
    """Bytes of the fullest device while ``rows`` prompts are answered, each text at most ``length`` tokens long."""
    width = TORCH_DTYPES[precision.compute].itemsize
    rows = math.ceil(rows / layout.data)
    found = []
    for pipeline in range(layout.pipeline):
        share = share_of(options, replace(precision, parameters=precision.compute), None, layout, Place(pipeline))
        cache = 2 * share.layers * rows * share.options.num_kv_heads * length * options.head_dim
        logits = rows * share.options.vocab_size * 4 if share.last else 0
        weights = (share.layer * share.layers + share.ends).all
        found.append({"weights": weights, "keys and values": cache * width, "logits": logits})
    return max(found, key=lambda kinds: sum(kinds.values()))


def evaluation_memory(
    model: ModelTask, options: ModelOptions, rows: int, length: int, layout: ParallelOptions, device: str
) -> Kinds:
    """Bytes of the fullest device while it evaluates batches of ``rows`` rows of ``length`` positions."""
    found = []
    for pipeline in range(layout.pipeline):
        share = share_of(options, model.precision, None, layout, Place(pipeline))
        step = _Step(share, model.precision, layout, rows, length // layout.context, layout.pipeline)
        kinds = {"weights": step.constant()["weights"], "buffers": step.gathered()}
        if share.last:
            kinds["buffers"] += _scores(share.options, model.precision, rows * step.length, device)
        found.append(kinds)
    return max(found, key=lambda kinds: sum(kinds.values()))
