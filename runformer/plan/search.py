"""``parallel_mode: 2``: which layout of a task over its devices fits their memory and should be the fastest.

Every layout that the model and the batch allow is estimated: memory as ``plan/memory.py`` does, time as arithmetic over
speed, and bytes over bandwidth. The speeds are those of a common accelerator, so times are no predictions: they only
order plans. No layout changes what is learnt: the rows of a step stay as the task has them.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace

import psutil
import torch

from runformer.config.layout import ParallelOptions
from runformer.config.task import ModelOptions, OptimizerOptions, Task, TrainTask
from runformer.errors import ConfigError
from runformer.models.families import resolve_options
from runformer.observe import flops_per_token
from runformer.plan.layout import bytes_sent, idle_part
from runformer.plan.memory import Kinds, training_memory
from runformer.plan.training import planned_device
from runformer.train.setup import open_data

_NEIGHBOURS = 8  # devices of one machine, over which alone layers are shared
_FLOPS = 2e14  # that a device computes in a second, of the half that products reach of the peak of an A100 or 910B
_NEAR, _FAR = 2e11, 2e10  # bytes a second that a device sends within a machine, and between machines
_USABLE = 0.9  # of a device's memory: fragments, kernels' workspaces and the driver take the rest
_AGAIN = 4 / 3  # arithmetic with every layer recomputed
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout with the micro-batches of a step, its fullest device's memory in bytes, and estimated seconds a step."""

    layout: ParallelOptions
    micro_batches: int
    memory: Kinds
    seconds: float

    @property
    def bytes(self) -> int:
        """All of the memory."""
        return sum(self.memory.values())


def with_best_layout(task: Task) -> Task:
    """The task with the best layout that fits, and a notice that says which.

    Raises:
        ConfigError: no layout fits the devices; the one that comes nearest is named.
    """
    assert task.train is not None, "only training tasks are searched for"
    assert task.search is not None, "the layout is to be found"
    devices, options = task.search.devices, resolve_options(task.model)
    length = task.model.sequence_length or open_data(task).sequence_length
    room = int(_room(task, devices) * _USABLE)
    candidates = list(_candidates(task, task.train, options, length))
    if not candidates:
        rows = task.global_batch_size
        raise ConfigError(f"parallel.parallel_mode 2: no layout over {devices} devices takes {rows} rows a step")
    fitting = sorted((found for found in candidates if found.bytes <= room), key=lambda found: found.seconds)
    if not fitting:
        least = min(candidates, key=lambda found: found.bytes)
        text = f"needs {least.bytes / 2**30:.1f} GiB of a device, which may take {room / 2**30:.1f}"
        raise ConfigError(
            f"parallel.parallel_mode 2: no layout fits; {_sizes(least)} {text}",
            hint="give more devices, a smaller runner_config.batch_size or, if devices have more, "
            "context.max_device_memory",
        )
    best = fitting[0]
    others = "; ".join(_sizes(found) for found in fitting[1:_SHOWN])
    text = f"parallel.parallel_mode: 2 (AUTO_PARALLEL) takes, of {len(fitting)} layouts that fit {room / 2**30:.1f} GiB"
    text += f", {_sizes(best)}, {best.bytes / 2**30:.1f} GiB" + (f"; next: {others}" if others else "")
    notices = (*task.notices, f"{text}\nthe same in YAML:\n{textwrap.indent(_yaml(best, task.train.batch_size), '  ')}")
    train = replace(task.train, accumulation_steps=best.micro_batches)
    return replace(task, parallel=best.layout, search=None, train=train, notices=notices)


def _yaml(found: Candidate, rows: int) -> str:
    """The layout as the keys that ask for it, to be pasted in place of a search; ``rows`` in a batch."""
    layout, count = found.layout, found.micro_batches
    lines = ["use_parallel: True", "parallel:", "  parallel_mode: 1"]
    if layout.zero:
        lines += ["  enable_parallel_optimizer: True", "  parallel_optimizer_config:"]
        lines += [f"    optimizer_level: level{layout.zero}"]
    lines += [f"  gradient_reduce_dtype: {layout.reduce_dtype}"] if layout.reduce_dtype else []
    lines += ["parallel_config:", f"  data_parallel: {layout.data}", f"  model_parallel: {layout.tensor}"]
    lines += [f"  context_parallel: {layout.context}", f"  pipeline_stage: {layout.pipeline}"]
    lines += [f"  use_seq_parallel: {layout.sequence_parallel}"]
    lines += ["  vocab_emb_dp: True"] if layout.copies_embedding else []
    lines += [f"  gradient_aggregation_group: {layout.gradient_groups}"] if layout.gradient_groups else []
    lines += [f"  micro_batch_num: {count}"] if layout.pipeline > 1 else []
    lines += ["runner_config:", f"  batch_size: {rows}"]
    lines += [] if layout.pipeline > 1 else [f"  gradient_accumulation_steps: {count}"]
    lines += ["recompute_config:", f"  recompute: {layout.recompute}"]
    again = ["feed_forward.mul"] * bool(layout.recompute_products) + ["norm.norm"] * bool(layout.recompute_norms)
    return "\n".join([*lines, *(["  select_recompute:", *(f"    {name}: True" for name in again)] if again else [])])


def _sizes(found: Candidate) -> str:
    layout = found.layout
    more = f", ZeRO stage {layout.zero}" if layout.zero else ""
    more += ", recomputed" if layout.recompute else ""
    return (
        f"data {layout.data} × tensor {layout.tensor} × context {layout.context} × pipeline {layout.pipeline}"
        f" with {found.micro_batches} micro-batches{more}"
    )


def _room(task: Task, devices: int) -> int:
    """Bytes of one device."""
    if task.search is not None and task.search.memory is not None:
        return task.search.memory
    kind = planned_device(task)
    if kind == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(task.device.index).total_memory)
    if kind == "cpu":
        return int(psutil.virtual_memory().total) // min(devices, _NEIGHBOURS)
    raise ConfigError(
        "parallel.parallel_mode 2 needs to know how much memory a device has",
        hint="give context.max_device_memory, such as 58GB",
    )


def _candidates(task: Task, train: TrainTask, options: ModelOptions, length: int) -> Iterator[Candidate]:
    device, flops = planned_device(task), flops_per_token(options, length, frozen=task.model.lora is not None)
    for layout in _layouts(task, train, options, length):
        micro_batches, rest = divmod(task.global_batch_size, train.batch_size * layout.data)
        if rest or micro_batches < layout.pipeline:
            continue
        step = replace(train, accumulation_steps=micro_batches)
        memory = training_memory(task.model, options, step, length, layout, device)
        computing = task.global_batch_size * length * flops / (layout.devices * _FLOPS)
        computing *= _AGAIN if layout.recompute else 1.0
        sent = bytes_sent(task.model, options, step, layout, length)
        near = layout.tensor * layout.context <= _NEIGHBOURS
        speeds = {"tensor": _NEAR if near else _FAR, "context": _NEAR if near else _FAR}
        sending = sum(count / speeds.get(kind, _FAR) for kind, count in sent.items())
        seconds = computing / (1 - idle_part(layout, micro_batches)) + sending
        yield Candidate(layout, micro_batches, memory, seconds)


def _layouts(task: Task, train: TrainTask, options: ModelOptions, length: int) -> Iterator[ParallelOptions]:
    """All that the model allows, with what was written of the rest."""
    assert task.search is not None, "the layout is to be found"
    written, devices, whole_only = task.parallel, task.search.devices, not isinstance(train.optimizer, OptimizerOptions)
    tensors = [size for size in _divisors(devices) if size <= min(options.num_heads, _NEIGHBOURS)]
    for tensor, context, pipeline in itertools.product(tensors, _divisors(devices), _divisors(devices)):
        data, rest = divmod(devices, tensor * context * pipeline)
        if rest or length % context or pipeline > options.num_layers or (whole_only and tensor * pipeline > 1):
            continue
        stages = (0, 1, 2, 3) if data * context > 1 else (0,)
        for zero, recompute in itertools.product(stages[:2] if whole_only else stages, (False, True)):
            yield replace(
                written,
                data=data,
                tensor=tensor,
                context=context,
                pipeline=pipeline,
                sequence_parallel=tensor > 1 and length % (tensor * context) == 0,
                zero=zero,  # type: ignore[arg-type]
                recompute=recompute,
                copies_embedding=written.copies_embedding and tensor > 1,
                gradient_groups=written.gradient_groups if data * context > 1 else None,
                reduce_dtype=written.reduce_dtype if data * context > 1 else None,
            )


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
