"""From the training sections to the TrainTask, and from the evaluation sections to the EvaluationTask."""

from __future__ import annotations

from dataclasses import fields
from typing import TypeVar

from runformer.config.layout import ParallelOptions
from runformer.config.plugin_sections import PluginSection, unknown_type
from runformer.config.problems import Report
from runformer.config.resolve_data import data_options
from runformer.config.resolve_parallel import loss_mean, resets_accumulation
from runformer.config.sections import Config
from runformer.config.sections.training import (
    OTHER_CALLBACKS,
    Callback,
    CheckpointMonitor,
    LossMonitor,
    LossScale,
    LrSchedule,
    Optimizer,
)
from runformer.config.task import (
    EvaluationTask,
    LossLineOptions,
    LossScaleOptions,
    ModelTask,
    OptimizerOptions,
    PluginOptimizerOptions,
    PluginOptions,
    PluginScheduleOptions,
    SaveOptions,
    ScheduleOptions,
    TrainTask,
)

_DEFAULT_LEARNING_RATE = 5e-5  # of MindFormers' template
_STEP_CLASSES = ("MFTrainOneStepCell", "TrainOneStepCell", "MFPipelineWithLossScaleCell")

OPTIMIZERS = ("AdamW", "FusedAdamW", "FP32StateAdamWeightDecay", "AdamWeightDecay")
# Those that take the moments without correction for their start from zero, and their own default of eps.
_WITHOUT_CORRECTION = ("fp32stateadamweightdecay", "adamweightdecay")
_EPS = {True: 1e-8, False: 1e-6}  # by bias correction
SCHEDULES = (
    "ConstantWarmUpLR",
    "ConstantWithCoolDownLR",
    "LinearWithWarmUpLR",
    "CosineWithWarmUpLR",
    "CosineWithRestartsAndWarmUpLR",
    "PolynomialWithWarmUpLR",
    "WarmUpStableDecayLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
)
SCHEDULE_ALIASES = {
    "polynomial": "PolynomialWithWarmUpLR",
    "cosine": "CosineWithWarmUpLR",
    "linear": "LinearWithWarmUpLR",
    "constant_with_warmup": "ConstantWarmUpLR",
}
_ANNEALING = ("CosineAnnealingLR", "CosineAnnealingWarmRestarts")

MonitorT = TypeVar("MonitorT", bound=Callback)


def train_task(config: Config, model: ModelTask, parallel: ParallelOptions, report: Report) -> TrainTask:
    """Everything about a training run.

    Raises:
        ConfigError: if the dataset is not there, or something is asked for that cannot be done.
    """
    runner, wrapper = config.runner_config, config.runner_wrapper
    if wrapper.type is not None and wrapper.type not in _STEP_CLASSES:
        report.error("runner_wrapper.type", f"is {wrapper.type!r}; supported: {', '.join(_STEP_CLASSES)}")
    _note_other_callbacks(config, report)
    line = _last(config, LossMonitor) or LossMonitor()
    return TrainTask(
        data=data_options(config, "train_dataset", model, report),
        epochs=runner.epochs,
        batch_size=runner.batch_size,
        accumulation_steps=_micro_batches(config, parallel, report),
        optimizer=_optimizer(config.optimizer, parallel, report),
        schedule=_schedule(config, report),
        loss_scale=_loss_scale(config),
        max_grad_norm=wrapper.max_grad_norm if wrapper.use_clip_grad else None,
        save=_save(_last(config, CheckpointMonitor)),
        loss_mean=loss_mean(config, report),
        loss_line=LossLineOptions(line.per_print_times, running_mean=not runner.sink_mode),
        callbacks=tuple(
            PluginOptions(item.type, item.keys) for item in config.callbacks if isinstance(item, PluginSection)
        ),
    )


def _micro_batches(config: Config, parallel: ParallelOptions, report: Report) -> int:
    """How many batches of ``batch_size`` rows each copy of the model takes a step.

    In a pipeline its micro-batches; elsewhere those that are accumulated. The original resets what the other one uses.
    """
    accumulated = config.runner_config.gradient_accumulation_steps
    in_pipeline = config.parallel_config.micro_batch_num or 1
    interleaved = config.micro_batch_interleave_num or 1
    if parallel.pipeline > 1:
        if accumulated > 1:
            text = f"is not used in a pipeline, whose micro_batch_num {in_pipeline} decides, as in MindFormers"
            report.notice(f"runner_config.gradient_accumulation_steps: {accumulated} {text}")
        return in_pipeline * interleaved
    if in_pipeline > 1 and config.use_parallel:
        report.notice(f"parallel_config.micro_batch_num: {in_pipeline} is not used without pipeline stages")
    if accumulated > 1 and resets_accumulation(config, report):
        text = "is 1 in this mode, as in MindFormers (parallel.reference_semantics)"
        report.notice(f"runner_config.gradient_accumulation_steps: {accumulated} {text}")
        return interleaved if config.use_parallel else 1
    if accumulated > 1 and parallel.devices == 1:
        text = f"a step takes {accumulated} batches, as written; MindFormers sets it to 1 on one device"
        report.notice(f"runner_config.gradient_accumulation_steps: {text}")
    return accumulated * (interleaved if config.use_parallel else 1)


def _last(config: Config, kind: type[MonitorT]) -> MonitorT | None:
    found = [item for item in config.callbacks if isinstance(item, kind)]
    return found[-1] if found else None


def _note_other_callbacks(config: Config, report: Report) -> None:
    for index, item in enumerate(config.callbacks):
        reason = OTHER_CALLBACKS.get(item.type or "") if isinstance(item, Callback) else None
        if reason is not None:
            report.no_effect(f"callbacks[{index}] {item.type}", reason)


def _save(monitor: CheckpointMonitor | None) -> SaveOptions | None:
    """As the original decides: steps rather than seconds, and a number rather than minutes, where both are set."""
    if monitor is None:
        return None
    steps, seconds = monitor.save_checkpoint_steps, monitor.save_checkpoint_seconds or None
    keep, minutes = monitor.keep_checkpoint_max, monitor.keep_checkpoint_per_n_minutes or None
    steps = 1 if steps is None and seconds is None else steps or None
    keep = 5 if keep is None and minutes is None else keep or None
    return SaveOptions(
        prefix=monitor.prefix,
        every_steps=steps,
        every_seconds=None if steps else seconds,
        keep=keep,
        keep_minutes=None if keep else minutes,
        whole=monitor.integrated_save,
        behind=monitor.async_save,
        weights=monitor.save_network_params,
        trained=monitor.save_trainable_params,
    )


def _optimizer(
    optimizer: Optimizer | PluginSection, parallel: ParallelOptions, report: Report
) -> OptimizerOptions | PluginOptimizerOptions:
    if isinstance(optimizer, PluginSection):
        if parallel.tensor * parallel.pipeline > 1 or parallel.zero > 1:
            text = f"is {optimizer.type!r} of a plug-in, which trains whole models so far; this plan splits the model"
            report.not_built("optimizer.type", text)
        if report.planning:
            report.notice(f"optimizer {optimizer.type}: its memory is planned as if it were AdamW's")
        return PluginOptimizerOptions(optimizer.type, optimizer.keys, optimizer.own.get("weight_decay", 0.0))
    kind = (optimizer.type or "AdamW").lower()
    if kind not in map(str.lower, OPTIMIZERS):
        report.error("optimizer.type", unknown_type("optimizer", optimizer.type or "", OPTIMIZERS))
    betas = optimizer.betas or [0.9, 0.999]
    if len(betas) != 2:
        report.error("optimizer.betas", f"must be two numbers, not {len(betas)}")
        betas = [0.9, 0.999]
    first = betas[0] if optimizer.beta1 is None else optimizer.beta1
    second = betas[1] if optimizer.beta2 is None else optimizer.beta2
    for name, beta in (("beta1" if optimizer.beta1 is not None else "betas", first), ("beta2", second)):
        if beta >= 1:
            report.error(f"optimizer.{name}", f"must be less than 1, not {beta}")
    corrected = kind not in _WITHOUT_CORRECTION
    eps = _EPS[corrected] if optimizer.eps is None else optimizer.eps
    return OptimizerOptions((first, second), eps, optimizer.weight_decay, corrected)


def _schedule(config: Config, report: Report) -> ScheduleOptions | PluginScheduleOptions:
    schedule = config.lr_schedule
    if isinstance(schedule, PluginSection):
        return PluginScheduleOptions(schedule.type, schedule.keys, _total_steps(schedule, report))
    kind = SCHEDULE_ALIASES.get(schedule.type or "", schedule.type)
    if kind is None:
        raise report.failure("lr_schedule.type", f"is not set. Supported: {', '.join(SCHEDULES)}")
    if kind not in SCHEDULES:
        raise report.failure("lr_schedule.type", unknown_type("schedule", kind, SCHEDULES))
    parameters = {
        item.name: float(value)
        for item in fields(LrSchedule)
        if isinstance(value := getattr(schedule, item.name), int | float)
    }
    if "learning_rate" not in parameters and kind not in _ANNEALING:
        parameters["learning_rate"] = _learning_rate(config, report)
    if not report.given("lr_schedule"):
        report.notice(f"lr_schedule is not given: {kind} down to 0, as in MindFormers")
    return ScheduleOptions(kind, parameters)


def _total_steps(schedule: PluginSection, report: Report) -> int | None:
    steps = schedule.own.get("total_steps", -1)
    if steps != -1 and (steps < 1 or steps != int(steps)):
        report.error("lr_schedule.total_steps", f"must be a whole number of steps, or -1 for those of the run: {steps}")
    return None if steps == -1 else int(steps)


def _learning_rate(config: Config, report: Report) -> float:
    optimizer = config.optimizer
    rate = optimizer.own.get("learning_rate") if isinstance(optimizer, PluginSection) else optimizer.learning_rate
    if rate is not None:
        return rate
    report.notice(
        f"neither lr_schedule nor optimizer gives a learning rate: {_DEFAULT_LEARNING_RATE}, as in MindFormers"
    )
    return _DEFAULT_LEARNING_RATE


def _loss_scale(config: Config) -> LossScaleOptions:
    scale = config.runner_wrapper.scale_sense
    if not isinstance(scale, LossScale):
        return LossScaleOptions(initial=1.0 if scale is None else scale)
    dynamic = scale.type != "FixedLossScaleUpdateCell"
    return LossScaleOptions(scale.loss_scale_value, dynamic, scale.scale_factor, scale.scale_window)


def evaluation_task(config: Config, model: ModelTask, report: Report) -> EvaluationTask:
    """Everything about an evaluation; how often it comes matters in a training run only.

    Raises:
        ConfigError: if the dataset is not there.
    """
    kind = config.metric.type
    if kind not in (None, "PerplexityMetric"):
        report.error("metric.type", f"is {kind!r}; supported: PerplexityMetric, the perplexity of the dataset")
    steps, epochs = config.eval_step_interval, config.eval_epoch_interval
    if config.run_mode != "eval" and max(steps, epochs) < 1:
        text = "is True, but eval_step_interval and eval_epoch_interval are off: set one of them to 1 or more"
        report.error("do_eval", text)
    return EvaluationTask(
        data=data_options(config, "eval_dataset", model, report),
        batch_size=config.eval_dataset.batch_size or config.runner_config.batch_size,
        every_steps=steps if steps > 0 else None,
        every_epochs=epochs if epochs > 0 else None,
    )
