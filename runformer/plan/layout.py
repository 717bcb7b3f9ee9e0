"""How a model would lie over devices, and what each of them would send in a training step."""

from __future__ import annotations

from collections.abc import Mapping

from runformer.config.layout import ParallelOptions
from runformer.config.task import ModelOptions, ModelTask, TrainTask
from runformer.models.decoder import TORCH_DTYPES
from runformer.parallel.compose import stage_indices
from runformer.parallel.heads import share_heads
from runformer.parallel.mesh import V_SCHEDULES, Place
from runformer.parallel.pipeline import stages_of
from runformer.plan.plan import LayoutPlan, StagePlace
from runformer.plan.share import Share, Size, share_of


def plan_layout(options: ModelOptions, layout: ParallelOptions) -> LayoutPlan:
    """Which ranks have which layers, and how many heads each has of a layer that it shares."""
    stages = stages_of(options.num_layers, layout.pipeline, layout.chunks, layout.extra_layers)
    width = layout.devices // layout.pipeline
    places = [
        StagePlace(
            layers=tuple((stages[index].layers.start, stages[index].layers.stop) for index in indices),
            first_rank=pipeline * width,
            ranks=width,
        )
        for pipeline, indices in ((number, stage_indices(number, layout)) for number in range(layout.pipeline))
    ]
    shares = share_heads(options.num_heads, options.num_kv_heads, layout.tensor)
    return LayoutPlan(
        stages=tuple(places),
        query_heads=tuple(end - begin for begin, end in (share.query for share in shares)),
        key_value_heads=tuple(end - begin for begin, end in (share.key_value for share in shares)),
    )


def bytes_sent(
    model: ModelTask, options: ModelOptions, train: TrainTask, layout: ParallelOptions, length: int
) -> Mapping[str, int]:
    """Bytes that the device with the most layers sends in one training step, by kind of parallelism.

    Sums are counted as rings make them: ``2 (n - 1) / n`` times what is summed (Patarasuk and Yuan, 2009), gathers and
    scatters as half of that.

    Args:
        model: for the dtype of activations, and adapters.
        options: the whole model's shape.
        train: for the micro-batches of a step.
        layout: the sizes.
        length: positions in a row.
    """
    precision = model.precision
    share = max(_shares(model, options, layout), key=lambda share: share.layers)
    size, width = share.layer * share.layers + share.ends, TORCH_DTYPES[precision.compute].itemsize
    positions = train.batch_size * train.accumulation_steps * length // layout.context
    activations = positions * options.hidden_size * width
    keys = 2 * positions * share.options.num_kv_heads * options.head_dim * width
    spread = layout.tensor if layout.sequence_parallel else 1
    between = 2 * layout.chunks if layout.pipeline > 1 else 0  # there, and the gradients back
    sent = {
        "data": _between_copies(size, layout, train.accumulation_steps),
        # Two blocks a layer, forwards and backwards; with positions shared out a sum is a scatter and a gather.
        "tensor": share.layers * 4 * _ring(activations, layout.tensor),
        # Each rank's keys and values to all others, and as much of their gradients back.
        "context": share.layers * 2 * keys * (layout.context - 1),
        "pipeline": between * activations // spread,
    }
    return {kind: count for kind, count in sent.items() if count}


def _shares(model: ModelTask, options: ModelOptions, layout: ParallelOptions) -> list[Share]:
    """Of the first of those that share layers, in each place of the pipeline."""
    places = (Place(pipeline=number) for number in range(layout.pipeline))
    return [share_of(options, model.precision, model.lora, layout, place) for place in places]


def _between_copies(size: Size, layout: ParallelOptions, micro_batches: int) -> int:
    """Gradients, once a step; or for every micro-batch weights to all who share them out, and gradients back."""
    copies, shards = layout.replicas, layout.shards
    if layout.zero < 2 or shards == 1:
        return _ring(size.trained, copies)
    gathers = layout.zero - 1  # once again in the backward pass with stage 3
    shared = micro_batches * (gathers * size.all + size.trained) * (shards - 1) // shards
    return shared + _ring(size.trained // shards, copies // shards) * micro_batches


def _ring(count: int, ranks: int) -> int:
    return 2 * count * (ranks - 1) // ranks


def idle_part(layout: ParallelOptions, micro_batches: int) -> float:
    """The part of a step's time in which a device of a pipeline waits for others, if all stages are equally slow.

    For 1F1B, GPipe and their interleaved forms after arXiv:2104.04473; a V fills all gaps where there are micro-batches
    enough (arXiv:2401.10241), and is counted as if each missing one were a gap.
    """
    waiting = layout.pipeline - 1
    if layout.schedule in V_SCHEDULES:
        needed = 2 * layout.pipeline - 1
        return max(0, needed - micro_batches) / needed if waiting else 0.0
    return waiting / (layout.chunks * micro_batches + waiting)
