"""Stages of a pipeline: how many a device has, how layers are spread over them, and their schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runformer.config.problems import Report
from runformer.config.sections import Config
from runformer.config.sizes import Sizes
from runformer.config.task import ModelOptions

SCHEDULER = "parallel.pipeline_config.pipeline_scheduler"
ZERO_BUBBLE = "zero_bubble_v"
_SCHEDULES = {
    ("1f1b", False): "1F1B",
    ("gpipe", False): "GPipe",
    ("1f1b", True): "Interleaved1F1B",
    ("gpipe", True): "LoopedBFS",
}
"""PyTorch's names of schedules, by MindSpore's and whether a device has several stages."""
_ZERO_BUBBLE_STAGES = 2


def pipeline_options(sizes: Sizes, config: Config, options: ModelOptions | None, report: Report) -> dict[str, Any]:
    """What ``ParallelOptions`` says of stages and their schedule."""
    if sizes.pipeline == 1:
        return {}
    chunks = _chunks(config)
    if config.run_mode == "predict" and chunks > 1:
        return {}  # several stages a device would only pass each token around more often
    name = config.parallel.pipeline_config.pipeline_scheduler or "1f1b"
    if name.startswith("seq"):
        report.notice(f"{SCHEDULER}: {name} cuts sequences into parts, too; here it is 1f1b, with the same numbers")
        name = "1f1b"
    schedule = "ZBVZeroBubble" if name == ZERO_BUBBLE else _SCHEDULES[name, chunks > 1]
    return {"chunks": chunks, "schedule": schedule, "extra_layers": _extra_layers(sizes, chunks, config, options)}


def _chunks(config: Config) -> int:
    """Stages of each device."""
    if config.parallel.pipeline_config.pipeline_scheduler == ZERO_BUBBLE:
        return _ZERO_BUBBLE_STAGES  # down the layers with one, and back up with the other
    return config.model.model_config.pp_interleave_num or 1


def _extra_layers(sizes: Sizes, chunks: int, config: Config, options: ModelOptions | None) -> tuple[int, ...] | None:
    """Layers of each stage beyond an equal number, in the order of the layers; None: as equal as they can be.

    The original's single number ``k`` counts layers as if ``k`` came before them: the first stage has as many fewer,
    and the last one has them and what is left over.
    """
    offset = config.model.model_config.offset
    if isinstance(offset, list):
        return tuple(flat_numbers(offset))
    if not offset or options is None:
        return None
    stages = sizes.pipeline * chunks
    extra = [0] * stages
    extra[0] -= offset
    extra[-1] += options.num_layers % stages + offset
    return tuple(extra)


def flat_numbers(offset: Sequence[int | list[int]]) -> list[int]:
    """A list of numbers, or of lists of them, as one list."""
    return [number for item in offset for number in (item if isinstance(item, list) else [item])]


def check_chunks(sizes: Sizes, config: Config, options: ModelOptions, report: Report) -> None:
    """Interleaved stages must have layers, and micro-batches come in rounds of as many as there are devices."""
    chunks, zero_bubble = _chunks(config), config.parallel.pipeline_config.pipeline_scheduler == ZERO_BUBBLE
    if sizes.pipeline == 1 or chunks == 1:
        return
    path = "model.model_config.pp_interleave_num"
    if zero_bubble and config.model.model_config.pp_interleave_num not in (None, 1, chunks):
        report.error(path, f"must be {chunks} with pipeline_scheduler {ZERO_BUBBLE}")
    if sizes.pipeline * chunks > options.num_layers:
        named = SCHEDULER if zero_bubble else path
        text = f"is {ZERO_BUBBLE if zero_bubble else chunks}: {sizes.pipeline * chunks} stages"
        report.error(named, f"{text}, more than the model's {options.num_layers} layers")
    micro_batches = config.parallel_config.micro_batch_num or 1
    if micro_batches % sizes.pipeline and not zero_bubble:
        text = f"is {micro_batches}, which {sizes.pipeline} devices do not divide: pp_interleave_num above 1 needs that"
        report.error("parallel_config.micro_batch_num", text)


def check_offset(sizes: Sizes, config: Config, options: ModelOptions, report: Report) -> None:
    """``offset`` moves layers between stages: one number a stage, which must leave as many layers as there are."""
    offset = config.model.model_config.offset
    path = "model.model_config.offset"
    if sizes.pipeline == 1 or not offset:
        return
    if not isinstance(offset, list):
        least = options.num_layers // (sizes.pipeline * _chunks(config))
        if not 0 <= offset < least:
            report.error(path, f"is {offset}, and leaves the first stage none of its {least} layers")
        return
    flat = flat_numbers(offset)
    stages = sizes.pipeline * _chunks(config)
    if len(flat) != stages:
        report.error(path, f"has {len(flat)} numbers, not one for each of the {stages} stages")
    elif sum(flat) != options.num_layers % stages:
        text = f"sums to {sum(flat)}; {options.num_layers} layers in {stages} stages need {options.num_layers % stages}"
        report.error(path, text)
    elif min(flat) + options.num_layers // stages < 1:
        report.error(path, f"leaves a stage without layers: {options.num_layers // stages} a stage before it")
