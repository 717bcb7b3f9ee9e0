"""How a model would lie over devices, and what each of them would send in a training step."""

from __future__ import annotations

from collections.abc import Mapping

from runformer.config.task import ModelOptions, ParallelOptions, Precision, TrainTask
from runformer.models.decoder import TORCH_DTYPES
from runformer.parallel.compose import stage_indices
from runformer.parallel.heads import share_heads
from runformer.parallel.pipeline import stages_of
from runformer.plan.plan import LayoutPlan, StagePlace


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
    options: ModelOptions, precision: Precision, train: TrainTask, layout: ParallelOptions, length: int, gradients: int
) -> Mapping[str, int]:
    """Bytes that a device in the middle of a pipeline sends in one training step, by kind of parallelism.

    Sums are counted as rings make them: ``2 (n - 1) / n`` times what is summed (Patarasuk and Yuan, 2009).

    Args:
        options: the whole model's shape.
        precision: for the dtype of activations.
        train: for the micro-batches of a step.
        layout: the sizes.
        length: positions in a row.
        gradients: bytes of the gradients of a device.
    """
    width = TORCH_DTYPES[precision.compute].itemsize
    layers = -(-options.num_layers // layout.pipeline)
    positions = train.batch_size * train.accumulation_steps * length // layout.context
    activations = positions * options.hidden_size * width
    keys = 2 * positions * options.num_kv_heads * options.head_dim * width // layout.tensor
    spread = layout.tensor if layout.sequence_parallel else 1
    between = 2 * layout.chunks if layout.pipeline > 1 else 0  # there, and the gradients back
    sent = {
        "data": _ring(gradients, layout.data * layout.context),
        # Two blocks a layer, forwards and backwards; with positions shared out a sum is a scatter and a gather.
        "tensor": layers * 4 * _ring(activations, layout.tensor),
        # Each rank's keys and values to all others, and as much of their gradients back.
        "context": layers * 2 * keys * (layout.context - 1),
        "pipeline": between * activations // spread,
    }
    return {kind: count for kind, count in sent.items() if count}


def _ring(count: int, ranks: int) -> int:
    return 2 * count * (ranks - 1) // ranks
