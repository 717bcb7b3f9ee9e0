"""From ``use_parallel``, ``parallel`` and ``parallel_config`` to the layout of work over devices, and its rules."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any, Literal

from runformer.config.launched import Launched
from runformer.config.layout import Layers, ParallelOptions, SearchOptions
from runformer.config.problems import Report, compact, nearest
from runformer.config.resolve_pipeline import (
    SCHEDULER,
    ZERO_BUBBLE,
    check_chunks,
    check_offset,
    flat_numbers,
    pipeline_options,
)
from runformer.config.sections import Config
from runformer.config.sections.device import ParallelConfig
from runformer.config.sizes import Sizes, nearest_plans
from runformer.config.task import LossMean, ModelOptions, ModelTask

_PRODUCTS = (r"feed_forward.mul", "feed_forward.w1.activation.silu", "feed_forward.activate.silu")
_NORMS = ("attention_norm.norm", "ffn_norm.norm")
_RECALLED = {"recompute_products": _PRODUCTS, "recompute_norms": _NORMS}
"""Operators of the original that make what can be computed again, by the option that does so."""

_CHOSEN = (
    "parallel.enable_parallel_optimizer",
    "parallel.parallel_optimizer_config",
    SCHEDULER,
    "parallel_config.use_seq_parallel",
    "parallel_config.micro_batch_num",
    "parallel_config.optimizer_shard",
    "model.model_config.offset",
    "model.model_config.pp_interleave_num",
    "recompute_config.recompute",
    "recompute_config.parallel_optimizer_comm_recompute",
)
"""What a search decides, whatever is written."""

Mode = Literal["stand_alone", "data_parallel", "semi_auto_parallel", "auto_parallel", "hybrid_parallel"]

_SECTION = "parallel_config"
_SELECTED = "recompute_config.select_recompute"
_MODE = "parallel.parallel_mode"
_BY_NUMBER: tuple[Mode, ...] = ("data_parallel", "semi_auto_parallel", "auto_parallel", "hybrid_parallel")
_BY_NAME: dict[str, Mode] = {name: name for name in ("stand_alone", *_BY_NUMBER)} | {
    "manual_parallel": "hybrid_parallel"
}
_STAGES_OF_ZERO = "gradient_accumulation_shard, optimizer_level or parallel_optimizer_comm_recompute"


def parallel_options(config: Config, model: ModelTask, place: Launched | None, report: Report) -> ParallelOptions:
    """How work is laid over devices, checked against their number, the model and the run mode.

    In a plan without a launcher there are as many devices as the layout takes.
    """
    mode = _mode(config, report)
    if mode == "hybrid_parallel":
        text = "is 3 (HYBRID_PARALLEL), in which a model splits itself by code of its own: give 1, and the sizes"
        report.error(_MODE, f"{text} in {_SECTION}")
    processes = None if place is None else place.world_size
    asked = _sizes(config.parallel_config)
    if searches(config, report):
        return _before_search(asked, config, report)
    if mode == "stand_alone":
        return replace(_alone(asked, processes, report), **_recompute(config, report))
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
        copies_embedding=bool(config.parallel_config.vocab_emb_dp) and sizes.model > 1,
        **_shares(sizes, config, report),
        **_recompute(config, report),
        **_messages(sizes, config),
        **pipeline_options(sizes, config, model.options, report),
    )


def _before_search(asked: Sizes, config: Config, report: Report) -> ParallelOptions:
    """Sizes that only make up the number of devices, with what a search leaves as it is written."""
    recomputed = _recompute(config, report)
    chosen = [path for path in _CHOSEN if report.given(path)]
    if any(isinstance(layers, tuple) for layers in recomputed.values()):  # for stages that are not known yet
        chosen.append(_SELECTED)
    if chosen:
        report.notice(f"{_MODE} 2 finds the layout by itself: {compact(chosen)} is not used")
    kept: dict[str, Any] = {name: layers is True for name, layers in recomputed.items() if name in _RECALLED}
    return ParallelOptions(
        asked.data,
        asked.model,
        asked.context,
        asked.pipeline,
        copies_embedding=bool(config.parallel_config.vocab_emb_dp),
        **_messages(Sizes(math.prod(asked), 1, 1, 1), config),
        **kept,
    )


def searches(config: Config, report: Report) -> bool:
    """Whether the layout is to be searched for: only training takes enough memory to be worth it."""
    return _mode(config, report) == "auto_parallel" and config.run_mode in ("train", "finetune")


def search_options(config: Config, place: Launched | None, report: Report) -> SearchOptions | None:
    """What a layout is searched for, if it is: the processes there are, or the devices that the sizes make."""
    if not searches(config, report):
        return None
    devices = place.world_size if place is not None else math.prod(_sizes(config.parallel_config))
    path, written = "context.max_device_memory", config.context.max_device_memory
    if written is None:
        return SearchOptions(devices)
    found = re.fullmatch(r"([0-9.]+) ?GB", written, re.IGNORECASE)
    try:
        memory = int(float(found[1]) * 2**30) if found else 0
    except ValueError:
        memory = 0
    if memory <= 0:
        report.error(path, f"must be a size such as 58GB, not {written!r}")
    return SearchOptions(devices, memory)


def _messages(sizes: Sizes, config: Config) -> dict[str, Any]:
    """How copies of the model sum their gradients."""
    if sizes.data * sizes.context == 1:
        return {}
    dtype = "bfloat16" if config.parallel.gradient_reduce_dtype == "bfloat16" else None
    return {"gradient_groups": config.parallel_config.gradient_aggregation_group, "reduce_dtype": dtype}


def _shares(sizes: Sizes, config: Config, report: Report) -> dict[str, Any]:
    """What copies of the model share out, and how many of them; see ``ParallelOptions.zero``."""
    copies, settings = sizes.data * sizes.context, config.parallel.parallel_optimizer_config
    wanted = config.parallel.enable_parallel_optimizer or config.parallel_config.optimizer_shard
    if not wanted or copies == 1 or config.run_mode == "predict":
        return {}
    stage = int(settings.optimizer_level[-1]) if settings.optimizer_level else 1
    if settings.gradient_accumulation_shard:
        stage = max(stage, 2)
    if config.recompute_config.parallel_optimizer_comm_recompute:
        stage = 3
    if stage > 1 and sizes.pipeline > 1 and config.parallel.pipeline_config.pipeline_scheduler == ZERO_BUBBLE:
        text = f"is {ZERO_BUBBLE}, which computes gradients of weights later than {_STAGES_OF_ZERO} can share them out"
        report.error(SCHEDULER, f"{text}: take 1f1b, or shard optimizer states only")
    sharers = settings.optimizer_weight_shard_size or -1
    if sharers > 0 and copies % sharers:
        path = "parallel.parallel_optimizer_config.optimizer_weight_shard_size"
        report.notice(f"{path}: {sharers} does not divide the {copies} copies of the model; all of them share")
        sharers = -1
    return {"zero": stage, "sharers": sharers} if 0 < sharers < copies else {"zero": stage}


def _recompute(config: Config, report: Report) -> dict[str, Any]:
    """Which layers are recomputed, and which compute single tensors again: those whose operators are named."""
    found = {"recompute": _layers("recompute_config.recompute", config.recompute_config.recompute, report)}
    value = config.recompute_config.select_recompute
    patterns = value if isinstance(value, dict) else {_PRODUCTS[0]: value}
    by: dict[str, str] = {}
    idle = []
    for pattern, layers in patterns.items():
        chosen = _layers(_SELECTED, layers, report)
        names = _recalled_by(pattern, report)
        idle += [] if names or not chosen else [pattern]
        for name in names if chosen else ():
            if found.setdefault(name, chosen) != chosen:
                text = f"has {by[name]!r} and {pattern!r} for the same tensors, and different layers"
                report.error(_SELECTED, f"{text}: give them once")
            by[name] = pattern
    if idle:
        known = ", ".join(operator for operators in _RECALLED.values() for operator in operators)
        report.notice(f"{_SELECTED}: {', '.join(idle)} has no effect; only these tensors can be left out: {known}")
    return found


def _recalled_by(pattern: str, report: Report) -> list[str]:
    """The options whose operators a regular expression finds."""
    try:
        return [name for name, operators in _RECALLED.items() if any(re.search(pattern, o) for o in operators)]
    except re.error as error:
        report.error(_SELECTED, f"has {pattern!r}, which is no regular expression: {error}")
        return []


def _layers(path: str, value: Any, report: Report) -> Layers:
    """None, all, or so many of each stage, in the order of the layers."""
    if value is None or isinstance(value, bool):
        return bool(value)
    flat = flat_numbers(value) if isinstance(value, list) else None
    if flat is None or not all(isinstance(count, int) and count >= 0 for count in flat):
        report.error(path, "must be True, False, or numbers of layers, one for each stage of the pipeline")
        return False
    return tuple(int(count) for count in flat)


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


def _check_model(sizes: Sizes, config: Config, model: ModelTask, report: Report) -> None:
    options = model.options
    if options is not None and sizes.pipeline > options.num_layers:
        text = f"is {sizes.pipeline}, more than the model's {options.num_layers} layers"
        report.error(f"{_SECTION}.pipeline_stage", text)
    if options is not None and sizes.model > options.num_heads:
        text = f"is {sizes.model}, more than the model's {options.num_heads} attention heads"
        report.error(f"{_SECTION}.model_parallel", text)
    if options is not None:
        check_chunks(sizes, config, options, report)
        check_offset(sizes, config, options, report)
    _check_positions(sizes, config, model, report)
    _check_context(sizes, config, model, report)
    strategy = config.parallel.dataset_strategy
    rows = strategy[0] if isinstance(strategy, list) and strategy else None
    if config.parallel.full_batch is False and isinstance(rows, list) and rows and rows[0] != sizes.data:
        text = f"splits rows into {rows[0]}, but {_SECTION}.data_parallel is {sizes.data}"
        report.error("parallel.dataset_strategy", text)


def _check_positions(sizes: Sizes, config: Config, model: ModelTask, report: Report) -> None:
    """Sequence parallelism shares out the positions of each context-parallel part."""
    shares = sizes.context * sizes.model
    spread = config.parallel_config.use_seq_parallel and sizes.model > 1
    if spread and model.sequence_length is not None and model.sequence_length % shares:
        text = f"shares positions out over {shares} devices, which do not divide seq_length {model.sequence_length}"
        report.error(f"{_SECTION}.use_seq_parallel", text)
    _check_padding(shares if spread else sizes.context, config, report)


def _check_padding(shares: int, config: Config, report: Report) -> None:
    """Rows that are padded to their batch's longest have a number of positions that devices can share out."""
    dataset = config.train_dataset
    extra = 0 if config.model.model_config.input_sliced_sig else 1
    if dataset.dynamic_batch and (dataset.divisor % shares or (dataset.remainder - extra) % shares):
        path = "train_dataset.divisor" if dataset.divisor % shares else "train_dataset.remainder"
        text = f"gives padded rows a number of positions that {shares} devices cannot share out"
        report.error(path, f"{text}: divisor {shares}, remainder {extra} would do")


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
