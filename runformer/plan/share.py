"""What one device of a layout holds of a model, as numbers: nothing is built but one layer, which has no memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from torch import nn

from runformer.config.layout import ParallelOptions
from runformer.config.task import LoraOptions, ModelOptions, Precision
from runformer.models.build import outline
from runformer.models.part import Stage, even_spans
from runformer.parallel.compose import stage_indices
from runformer.parallel.heads import Heads, share_heads
from runformer.parallel.mesh import Place
from runformer.parallel.pipeline import stages_of


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters: bytes of all, bytes of those that are trained, and how many numbers these are."""

    all: int = 0
    trained: int = 0
    numbers: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.all + other.all, self.trained + other.trained, self.numbers + other.numbers)

    def __mul__(self, times: int) -> Size:
        return Size(self.all * times, self.trained * times, self.numbers * times)


@dataclass(frozen=True, slots=True)
class Share:
    """A device's part of a model.

    Attributes:
        options: the model as if it were all here: this device's heads, MLP width and vocabulary.
        heads: its share of the heads of each layer.
        indices: which of all stages it has.
        stages: these.
        layer: the size of one layer.
        ends: the size of the embedding, the last norm and the output layer, as far as they are here.
        head: the size of the output layer, or of the embedding that serves for it.
    """

    options: ModelOptions
    heads: Heads
    indices: tuple[int, ...]
    stages: tuple[Stage, ...]
    layer: Size
    ends: Size
    head: Size

    @property
    def layers(self) -> int:
        """How many layers are here."""
        return sum(len(stage.layers) for stage in self.stages)

    @property
    def last(self) -> bool:
        """Whether the loss is computed here."""
        return self.stages[-1].last


def share_of(
    options: ModelOptions, precision: Precision, lora: LoraOptions | None, layout: ParallelOptions, place: Place
) -> Share:
    """What the device at a place of a layout holds.

    Args:
        options: the whole model's shape.
        precision: for the dtype of its parameters.
        lora: adapters on it.
        layout: the sizes.
        place: of the device; only its stage and its number among those that share layers count.
    """
    heads = share_heads(options.num_heads, options.num_kv_heads, layout.tensor)[place.tensor]
    width, vocabulary = (
        even_spans(size, layout.tensor)[place.tensor] for size in (options.intermediate_size, options.vocab_size)
    )
    here = replace(
        options,
        num_heads=heads.query[1] - heads.query[0],
        num_kv_heads=heads.key_value[1] - heads.key_value[0],
        intermediate_size=width[1] - width[0],
        vocab_size=vocabulary[1] - vocabulary[0],
    )
    all_stages = stages_of(options.num_layers, layout.pipeline, layout.chunks, layout.extra_layers)
    indices = tuple(stage_indices(place.pipeline, layout))
    stages = tuple(all_stages[index] for index in indices)
    layer, table, norm, head = _sizes(here, precision, lora)
    if layout.copies_embedding and not options.tie_embeddings:
        _, table, *_ = _sizes(replace(here, vocab_size=options.vocab_size), precision, lora)
    first, last = stages[0].first, stages[-1].last
    ends = Size()
    if first or (last and options.tie_embeddings):
        ends += table
    if last:
        ends += norm + head
    return Share(here, heads, indices, stages, layer, ends, head if head.all else table)


@cache  # a search asks for the same ones again and again
def _sizes(options: ModelOptions, precision: Precision, lora: LoraOptions | None) -> tuple[Size, Size, Size, Size]:
    """Of a layer, the embedding, the last norm and the output layer: nothing where the embedding serves for that."""
    part = outline(replace(options, num_layers=1), precision, lora)
    modules = (part.model.layers, part.model.embed_tokens, part.model.norm, part.lm_head)
    layer, table, norm, head = (Size() if module is None else _size(module) for module in modules)
    return layer, table, norm, head


def _size(module: nn.Module) -> Size:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return Size(
        sum(parameter.numel() * parameter.element_size() for parameter in module.parameters()),
        sum(parameter.numel() * parameter.element_size() for parameter in trained),
        sum(parameter.numel() for parameter in trained),
    )
