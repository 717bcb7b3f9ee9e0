"""From the training sections to the TrainTask."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from runformer.config.paths import display, existing
from runformer.config.problems import Report, nearest
from runformer.config.sections import Config
from runformer.config.sections.data import Dataset
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
    DataOptions,
    LossLineOptions,
    LossScaleOptions,
    ModelTask,
    OptimizerOptions,
    SaveOptions,
    ScheduleOptions,
    TrainTask,
)

_LOADER = "train_dataset.data_loader"
_DATASET_FILE = re.compile(r"mindrecord\d*$")
_DEFAULT_LEARNING_RATE = 5e-5  # of MindFormers' template
_DEFAULT_COLUMNS = ("input_ids",)
_STEP_CLASSES = ("MFTrainOneStepCell", "TrainOneStepCell", "MFPipelineWithLossScaleCell")

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
_SCHEDULE_ALIASES = {
    "polynomial": "PolynomialWithWarmUpLR",
    "cosine": "CosineWithWarmUpLR",
    "linear": "LinearWithWarmUpLR",
    "constant_with_warmup": "ConstantWarmUpLR",
}
_ANNEALING = ("CosineAnnealingLR", "CosineAnnealingWarmRestarts")

MonitorT = TypeVar("MonitorT", bound=Callback)


def train_task(config: Config, model: ModelTask, report: Report) -> TrainTask:
    """Everything about a training run.

    Raises:
        ConfigError: if the dataset is not there, or something is asked for that cannot be done.
    """
    runner, wrapper = config.runner_config, config.runner_wrapper
    if wrapper.type is not None and wrapper.type not in _STEP_CLASSES:
        report.error("runner_wrapper.type", f"is {wrapper.type!r}; supported: {', '.join(_STEP_CLASSES)}")
    if runner.gradient_accumulation_steps > 1:
        report.notice(
            f"runner_config.gradient_accumulation_steps: a step takes {runner.gradient_accumulation_steps} batches, as "
            "written; MindFormers sets it to 1 on one device"
        )
    _note_other_callbacks(config, report)
    line = _last(config, LossMonitor) or LossMonitor()
    return TrainTask(
        data=_data(config, model, report),
        epochs=runner.epochs,
        batch_size=runner.batch_size,
        accumulation_steps=runner.gradient_accumulation_steps,
        optimizer=_optimizer(config.optimizer, report),
        schedule=_schedule(config, report),
        loss_scale=_loss_scale(config),
        max_grad_norm=wrapper.max_grad_norm if wrapper.use_clip_grad else None,
        save=_save(_last(config, CheckpointMonitor)),
        loss_line=LossLineOptions(line.per_print_times, running_mean=not runner.sink_mode),
    )


def _last(config: Config, kind: type[MonitorT]) -> MonitorT | None:
    found = [item for item in config.callbacks if isinstance(item, kind)]
    return found[-1] if found else None


def _note_other_callbacks(config: Config, report: Report) -> None:
    for index, item in enumerate(config.callbacks):
        reason = OTHER_CALLBACKS.get(item.type or "")
        if reason is not None:
            report.no_effect(f"callbacks[{index}] {item.type}", reason)


def _save(monitor: CheckpointMonitor | None) -> SaveOptions | None:
    if monitor is None:
        return None
    return SaveOptions(
        prefix=monitor.prefix,
        every_steps=monitor.save_checkpoint_steps,
        keep=monitor.keep_checkpoint_max,
    )


def _data(config: Config, model: ModelTask, report: Report) -> DataOptions:
    dataset = config.train_dataset
    loader = dataset.data_loader
    options = config.model.model_config
    return DataOptions(
        paths=_dataset_paths(dataset, report),
        columns=tuple(dataset.input_columns or _DEFAULT_COLUMNS),
        shuffle=True if loader.shuffle is None else loader.shuffle,
        seed=config.seed if dataset.seed is None else dataset.seed,
        num_samples=loader.num_samples,
        drop_remainder=dataset.drop_remainder,
        already_shifted=options.input_sliced_sig,
        pad_token_id=model.options.pad_token_id if model.options else model.overrides.get("pad_token_id"),
        ignore_token_id=options.ignore_token_id,
    )


def _dataset_paths(dataset: Dataset, report: Report) -> tuple[Path, ...]:
    loader = dataset.data_loader
    if loader.type not in (None, "MindDataset"):
        text = f"is {loader.type!r}; supported: MindDataset, which reads MindRecord files"
        raise report.failure(f"{_LOADER}.type", text)
    key = "dataset_files" if loader.dataset_files and not loader.dataset_dir else "dataset_dir"
    names = getattr(loader, key) or []
    if not names:
        raise report.failure(f"{_LOADER}.dataset_dir", "is not set: --train_dataset_dir PATH gives the dataset")
    listed = [names] if isinstance(names, str) else names
    return tuple(path for name in listed for path in _dataset_files(name, f"{_LOADER}.{key}", report))


def _dataset_files(name: str, key: str, report: Report) -> list[Path]:
    """One file as it is; of a folder, every file in it whose name ends in mindrecord and digits, in natural order."""
    path = existing(report, key, name, flag="train_dataset_dir")
    if not path.is_dir():
        return [path]
    files = [file for file in path.rglob("*") if _DATASET_FILE.search(file.name) and file.is_file()]
    if not files:
        text = f"is {name!r}: no file in the folder {display(path)} has a name that ends in mindrecord"
        raise report.failure(key, f"{text} (--train_dataset_dir PATH gives another)")
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts ``x.mindrecord2`` before ``x.mindrecord10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _optimizer(optimizer: Optimizer, report: Report) -> OptimizerOptions:
    if (optimizer.type or "AdamW").lower() != "adamw":
        report.error("optimizer.type", f"is {optimizer.type!r}; supported: AdamW")
    betas = optimizer.betas or [0.9, 0.999]
    if len(betas) != 2:
        report.error("optimizer.betas", f"must be two numbers, not {len(betas)}")
        betas = [0.9, 0.999]
    first = betas[0] if optimizer.beta1 is None else optimizer.beta1
    second = betas[1] if optimizer.beta2 is None else optimizer.beta2
    for name, beta in (("beta1" if optimizer.beta1 is not None else "betas", first), ("beta2", second)):
        if beta >= 1:
            report.error(f"optimizer.{name}", f"must be less than 1, not {beta}")
    return OptimizerOptions((first, second), optimizer.eps, optimizer.weight_decay)


def _schedule(config: Config, report: Report) -> ScheduleOptions:
    schedule = config.lr_schedule
    kind = _SCHEDULE_ALIASES.get(schedule.type or "", schedule.type)
    if kind not in SCHEDULES:
        near = nearest(schedule.type or "", SCHEDULES)
        named = "is not set" if schedule.type is None else f"is {schedule.type!r}"
        suggestion = f"; did you mean {near!r}?" if near else ""
        raise report.failure("lr_schedule.type", f"{named}{suggestion} Supported: {', '.join(SCHEDULES)}")
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


def _learning_rate(config: Config, report: Report) -> float:
    if config.optimizer.learning_rate is not None:
        return config.optimizer.learning_rate
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
