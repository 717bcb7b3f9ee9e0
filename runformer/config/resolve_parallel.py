"""From ``use_parallel``, ``parallel`` and ``parallel_config`` to the layout of work over devices, and its rules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from runformer.config.launched import Launched
from runformer.config.problems import Report, nearest
from runformer.config.sections import Config
from runformer.config.sections.device import ParallelConfig
from runformer.config.task import LossMean, ModelOptions, ModelTask, ParallelOptions

Mode = Literal["stand_alone", "data_parallel", "semi_auto_parallel", "auto_parallel", "hybrid_parallel"]

_SECTION = "parallel_config"
_MODE = "parallel.parallel_mode"
_BY_NUMBER: tuple[Mode, ...] = ("data_parallel", "semi_auto_parallel", "auto_parallel", "hybrid_parallel")
_BY_NAME: dict[str, Mode] = {name: name for name in ("stand_alone", *_BY_NUMBER)} | {
    "manual_parallel": "hybrid_parallel"
}
_SHOWN_PLANS = 3
_SCHEDULES = {
    ("1f1b", False): "1F1B",
    ("gpipe", False): "GPipe",
    ("1f1b", True): "Interleaved1F1B",
    ("gpipe", True): "LoopedBFS",
}
"""PyTorch's names of schedules, by MindSpore's and whether a device has several stages."""


class Sizes(NamedTuple):
    """A plan as ``parallel_config`` writes it."""

    data: int
    model: int
    context: int
    pipeline: int

    def __str__(self) -> str:
        return (
            f"data_parallel {self.data} × model_parallel {self.model} × context_parallel {self.context} × "
            f"pipeline_stage {self.pipeline}"
        )


def parallel_options(config: Config, model: ModelTask, place: Launched | None, report: Report) -> ParallelOptions:
    """How work is laid over devices, checked against their number, the model and the run mode.

    In a plan without a launcher there are as many devices as the layout takes.
    """
    mode = _mode(config, report)
    if mode == "hybrid_parallel":
        text = "is 3 (HYBRID_PARALLEL), in which a model splits itself by code of its own: give 1, and the sizes"
        report.error(_MODE, f"{text} in {_SECTION}")
    if mode == "auto_parallel":
        report.notice(f"{_MODE}: 2 (AUTO_PARALLEL) takes the sizes in {_SECTION} as they are; there is no search yet")
    processes = None if place is None else place.world_size
    asked = _sizes(config.parallel_config)
    if mode == "stand_alone":
        return replace(_alone(asked, processes, report), recompute=_recompute(config, report))
    if mode == "data_parallel":
        sizes = Sizes(processes or (asked.data if report.planning else 1), 1, 1, 1)
        _note_ignored(asked, sizes, "parallel_mode is data_parallel", report)
    else:
        sizes = asked
        _check_count(asked, processes, model.options, report)
    _check_model(sizes, config, model, report)
    _check_run_mode(sizes, config, report)
    return ParallelOptions(
        data=sizes.data,
        tensor=sizes.model,
        context=sizes.context,
        pipeline=sizes.pipeline,
        sequence_parallel=bool(config.parallel_config.use_seq_parallel) and sizes.model > 1,
        shard_optimizer=bool(config.parallel.enable_parallel_optimizer or config.parallel_config.optimizer_shard)
        and sizes.data > 1,
        recompute=_recompute(config, report),
        **_pipeline(sizes, config, model.options, report),
    )


def _recompute(config: Config, report: Report) -> bool | tuple[int, ...]:
    """Which layers are recomputed: none, all, or so many of each stage, in the order of the layers."""
    path, value = "recompute_config.recompute", config.recompute_config.recompute
    if value is None or isinstance(value, bool):
        return bool(value)
    flat = _flat(value) if isinstance(value, list) else None
    if flat is None or not all(isinstance(count, int) and count >= 0 for count in flat):
        report.error(path, "must be True, False, or numbers of layers, one for each stage of the pipeline")
        return False
    return tuple(int(count) for count in flat)


def _pipeline(sizes: Sizes, config: Config, options: ModelOptions | None, report: Report) -> dict[str, Any]:
    """What ``ParallelOptions`` says of stages and their schedule."""
    if sizes.pipeline == 1:
        return {}
    chunks = config.model.model_config.pp_interleave_num or 1
    name = config.parallel.pipeline_config.pipeline_scheduler or "1f1b"
    if name.startswith("seq"):
        path = "parallel.pipeline_config.pipeline_scheduler"
        report.notice(f"{path}: {name} cuts sequences into parts, too; here it is 1f1b, with the same numbers")
        name = "1f1b"
    schedule = _SCHEDULES[name, chunks > 1]
    return {"chunks": chunks, "schedule": schedule, "extra_layers": _extra_layers(sizes, chunks, config, options)}


def _extra_layers(sizes: Sizes, chunks: int, config: Config, options: ModelOptions | None) -> tuple[int, ...] | None:
    """Layers of each stage beyond an equal number, in the order of the layers; None: as equal as they can be.

    The original's single number ``k`` counts layers as if ``k`` came before them: the first stage has as many fewer,
    and the last one has them and what is left over.
    """
    offset = config.model.model_config.offset
    if isinstance(offset, list):
        return tuple(_flat(offset))
    if not offset or options is None:
        return None
    stages = sizes.pipeline * chunks
    extra = [0] * stages
    extra[0] -= offset
    extra[-1] += options.num_layers % stages + offset
    return tuple(extra)


def _flat(offset: Sequence[int | list[int]]) -> list[int]:
    return [number for item in offset for number in (item if isinstance(item, list) else [item])]


def loss_mean(config: Config, report: Report) -> LossMean:
    """Over which tokens a step's loss is a mean: the whole global batch's, unless the original's way is asked for."""
    if not config.parallel.reference_semantics:
        return "global"
    mode = _mode(config, report)
    if mode == "data_parallel":
        return "rank_averaged" if config.parallel.gradients_mean else "rank_summed"
    return "micro_batch"


def resets_accumulation(config: Config, report: Report) -> bool:
    """Whether the original would leave accumulation out: it knows it in the semi-automatic mode only."""
    mode = _mode(config, report)
    return bool(config.parallel.reference_semantics) and mode in ("stand_alone", "data_parallel")


def _mode(config: Config, report: Report) -> Mode:
    """The parallel mode; without ``use_parallel`` the run is alone whatever the section says."""
    written = config.parallel.parallel_mode
    mode: Mode | None = "semi_auto_parallel"
    if isinstance(written, int):
        mode = _BY_NUMBER[written] if 0 <= written < len(_BY_NUMBER) else None
    elif written is not None:
        mode = _BY_NAME.get(written.lower())
    if mode is None:
        near = nearest(str(written), [name.upper() for name in _BY_NAME])
        hint = f"; did you mean {near!r}?" if near else ""
        names = ", ".join(f"{number} ({name.upper()})" for number, name in enumerate(_BY_NUMBER))
        report.error(_MODE, f"must be {names} or STAND_ALONE, not {written!r}{hint}")
        mode = "semi_auto_parallel"
    return mode if config.use_parallel else "stand_alone"


def _sizes(section: ParallelConfig) -> Sizes:
    return Sizes(
        section.data_parallel or 1,
        section.model_parallel or 1,
        section.context_parallel or 1,
        section.pipeline_stage or 1,
    )


def _alone(asked: Sizes, processes: int | None, report: Report) -> ParallelOptions:
    if processes is not None and processes > 1:
        text = f"lets each process run alone, but a launcher started {processes}: start one, or set it to True"
        report.error("use_parallel" if not report.given(_MODE) else _MODE, text)
    _note_ignored(asked, Sizes(1, 1, 1, 1), "the run is on one device", report)
    return ParallelOptions()


def _note_ignored(asked: Sizes, taken: Sizes, why: str, report: Report) -> None:
    if asked != taken and math.prod(asked) > 1:
        report.notice(f"{_SECTION}: {asked} is not used, since {why}; taken: {taken}")


def _check_count(asked: Sizes, processes: int | None, options: ModelOptions | None, report: Report) -> None:
    """``data × model × context × pipeline`` must be the number of devices."""
    devices = processes or (math.prod(asked) if report.planning else 1)
    if math.prod(asked) == devices:
        return
    wanted = math.prod(asked)
    text = f"asks for {asked}, {_devices(wanted)}, and this run has {_devices(devices)}"
    if devices == 1:
        report.error(_SECTION, f"{text}: --use_parallel False runs on one, or start {wanted} processes")
        return
    plans = "; ".join(str(plan) for plan in nearest_plans(asked, devices, options))
    report.error(_SECTION, f"{text}; the nearest plans that fit: {plans}")


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"


def nearest_plans(asked: Sizes, devices: int, options: ModelOptions | None) -> list[Sizes]:
    """Layouts for exactly ``devices`` devices that the model allows, the likest first.

    Likeness is in factors of two over all dimensions; of the like ones those come first that change the number of
    copies, since that leaves a device's share of the model as it is.
    """

    def unlikeness(plan: Sizes) -> tuple[float, float]:
        steps = [abs(math.log2(ours / theirs)) for ours, theirs in zip(plan, asked, strict=True)]
        return sum(steps[1:]), sum(steps)

    return sorted(_plans(devices, options), key=unlikeness)[:_SHOWN_PLANS]


def _plans(devices: int, options: ModelOptions | None) -> Iterator[Sizes]:
    for model in _divisors(devices):
        if options is not None and model > options.num_heads:
            continue
        for pipeline in _divisors(devices // model):
            if options is not None and pipeline > options.num_layers:
                continue
            for context in _divisors(devices // model // pipeline):
                yield Sizes(devices // model // pipeline // context, model, context, pipeline)


def _divisors(number: int) -> list[int]:
    small = [candidate for candidate in range(1, math.isqrt(number) + 1) if number % candidate == 0]
    return sorted({*small, *(number // candidate for candidate in small)})


def _check_model(sizes: Sizes, config: Config, model: ModelTask, report: Report) -> None:
    options = model.options
    if options is not None and sizes.pipeline > options.num_layers:
        text = f"is {sizes.pipeline}, more than the model's {options.num_layers} layers"
        report.error(f"{_SECTION}.pipeline_stage", text)
    if options is not None and sizes.model > options.num_heads:
        text = f"is {sizes.model}, more than the model's {options.num_heads} attention heads"
        report.error(f"{_SECTION}.model_parallel", text)
    if options is not None:
        _check_chunks(sizes, config, options, report)
        _check_offset(sizes, config, options, report)
    _check_positions(sizes, config, model, report)
    _check_context(sizes, config, model, report)
    strategy = config.parallel.dataset_strategy
    rows = strategy[0] if isinstance(strategy, list) and strategy else None
    if config.parallel.full_batch is False and isinstance(rows, list) and rows and rows[0] != sizes.data:
        text = f"splits rows into {rows[0]}, but {_SECTION}.data_parallel is {sizes.data}"
        report.error("parallel.dataset_strategy", text)


def _check_chunks(sizes: Sizes, config: Config, options: ModelOptions, report: Report) -> None:
    """Interleaved stages must have layers, and micro-batches come in rounds of as many as there are devices."""
    chunks = config.model.model_config.pp_interleave_num or 1
    if sizes.pipeline == 1 or chunks == 1:
        return
    path = "model.model_config.pp_interleave_num"
    if sizes.pipeline * chunks > options.num_layers:
        text = f"is {chunks}: {sizes.pipeline * chunks} stages, more than the model's {options.num_layers} layers"
        report.error(path, text)
    micro_batches = config.parallel_config.micro_batch_num or 1
    if micro_batches % sizes.pipeline:
        text = f"is {micro_batches}, which {sizes.pipeline} devices do not divide: pp_interleave_num above 1 needs that"
        report.error(f"{_SECTION}.micro_batch_num", text)


def _check_positions(sizes: Sizes, config: Config, model: ModelTask, report: Report) -> None:
    """Sequence parallelism shares out the positions of each context-parallel part."""
    shares = sizes.context * sizes.model
    spread = config.parallel_config.use_seq_parallel and sizes.model > 1
    if spread and model.sequence_length is not None and model.sequence_length % shares:
        text = f"shares positions out over {shares} devices, which do not divide seq_length {model.sequence_length}"
        report.error(f"{_SECTION}.use_seq_parallel", text)


def _check_offset(sizes: Sizes, config: Config, options: ModelOptions, report: Report) -> None:
    """``offset`` moves layers between stages: one number a stage, which must leave as many layers as there are."""
    offset = config.model.model_config.offset
    path = "model.model_config.offset"
    if sizes.pipeline == 1 or not offset:
        return
    if not isinstance(offset, list):
        least = options.num_layers // (sizes.pipeline * (config.model.model_config.pp_interleave_num or 1))
        if not 0 <= offset < least:
            report.error(path, f"is {offset}, and leaves the first stage none of its {least} layers")
        return
    flat = _flat(offset)
    stages = sizes.pipeline * (config.model.model_config.pp_interleave_num or 1)
    if len(flat) != stages:
        report.error(path, f"has {len(flat)} numbers, not one for each of the {stages} stages")
    elif sum(flat) != options.num_layers % stages:
        text = f"sums to {sum(flat)}; {options.num_layers} layers in {stages} stages need {options.num_layers % stages}"
        report.error(path, text)
    elif min(flat) + options.num_layers // stages < 1:
        report.error(path, f"leaves a stage without layers: {options.num_layers // stages} a stage before it")


def _check_context(sizes: Sizes, config: Config, model: ModelTask, report: Report) -> None:
    section, path = config.parallel_config, f"{_SECTION}.context_parallel"
    if sizes.context == 1:
        return
    if model.sequence_length is not None and model.sequence_length % sizes.context:
        report.error(path, f"is {sizes.context}, which does not divide seq_length {model.sequence_length}")
    algorithm = section.context_parallel_algo or "colossalai_cp"
    kv_heads = model.options.num_kv_heads if model.options else None
    if algorithm == "ulysses_cp" and kv_heads is not None and sizes.context * sizes.model > kv_heads:
        text = (
            f"times model_parallel is {sizes.context * sizes.model}, more than the {kv_heads} heads ulysses_cp splits"
        )
        report.error(path, text)
    degree = section.ulysses_degree_in_cp or 1
    if algorithm == "hybrid_cp" and sizes.context % degree:
        report.error(f"{_SECTION}.ulysses_degree_in_cp", f"is {degree}, which does not divide {sizes.context}")


def _check_run_mode(sizes: Sizes, config: Config, report: Report) -> None:
    predicting = config.run_mode == "predict"
    micro_batches = config.parallel_config.micro_batch_num or 1
    if predicting and sizes.context > 1:
        report.error(f"{_SECTION}.context_parallel", "must be 1 to predict: answers come token by token")
    if not predicting and sizes.pipeline > micro_batches:
        text = f"is {micro_batches}, fewer than the {sizes.pipeline} stages: some would always wait"
        report.error(f"{_SECTION}.micro_batch_num", text)
    rows = config.predict_batch_size
    if predicting and rows is not None and rows % sizes.data:
        text = f"is {rows}, which {_SECTION}.data_parallel {sizes.data} does not divide"
        report.error("predict_batch_size", text)
    processes = config.transform_process_num or 1
    if math.prod(sizes) % processes:
        text = f"is {processes}, which does not divide the {math.prod(sizes)} devices"
        report.error("transform_process_num", text)
    _check_recompute(sizes, config, report)


def _check_recompute(sizes: Sizes, config: Config, report: Report) -> None:
    for name in ("recompute", "select_recompute", "select_comm_recompute"):
        value = getattr(config.recompute_config, name)
        for key, counts in value.items() if isinstance(value, dict) else [("", value)]:
            flat = isinstance(counts, list) and all(isinstance(count, int) for count in counts)
            if flat and len(counts) > sizes.pipeline:
                path = f"recompute_config.{name}"
                about = f" for {key!r}" if key else ""
                text = f"has {len(counts)} numbers{about}, more than the {sizes.pipeline} stages of the pipeline"
                report.error(path, text)
