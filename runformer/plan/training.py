"""The training part of a plan: steps, their learning rates, memory, and what is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from runformer.config.task import ModelOptions, Task, TrainTask
from runformer.data.loader import BatchLoader
from runformer.models.decoder import CausalLM
from runformer.observe import flops_per_token
from runformer.plan.memory import training_memory
from runformer.plan.plan import CurvePlan, DatasetPlan, OutputPlan, RunPlan, StepPlan
from runformer.train.run import earlier_files
from runformer.train.schedule import make_schedule
from runformer.train.setup import check_tokenizer, open_data

_SAMPLES = 100  # learning rates kept of a curve


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What ``Plan`` says of a training run."""

    dataset: DatasetPlan | None
    step: StepPlan | None
    run: RunPlan | None
    learning_rate: CurvePlan | None
    memory: Mapping[str, int] | None
    outputs: tuple[OutputPlan, ...]


def plan_training(task: Task, options: ModelOptions, model: CausalLM) -> TrainingPlan:
    """Steps, learning rates, memory and outputs of a training task; without a dataset what does not hang on it."""
    assert task.train is not None, "the task trains"
    check_tokenizer(task)
    loader = open_data(task) if task.train.data.paths else None
    length = loader.sequence_length if loader else task.model.sequence_length
    run = None if loader is None else _run(task.train, loader)
    return TrainingPlan(
        dataset=None if loader is None else _dataset(task.train, loader),
        step=None if length is None else _step(task, task.train, options, length),
        run=run,
        learning_rate=None if run is None else _curve(task.train, run),
        memory=None if length is None else _memory(task, task.train, options, length),
        outputs=_outputs(task, task.train, model, run),
    )


def _dataset(train: TrainTask, loader: BatchLoader) -> DatasetPlan:
    return DatasetPlan(tuple(map(str, train.data.paths)), loader.num_samples, loader.sequence_length)


def _memory(task: Task, train: TrainTask, options: ModelOptions, length: int) -> Mapping[str, int]:
    return training_memory(task.model, options, train, length, task.parallel, planned_device(task))


def planned_device(task: Task) -> str:
    """The kind of device that a task asks for; where it does not say, one of many is an accelerator."""
    here = "cuda" if torch.cuda.is_available() else "cpu"
    return task.device.kind or ("cuda" if task.parallel.devices > 1 else here)


def _step(task: Task, train: TrainTask, options: ModelOptions, length: int) -> StepPlan:
    rows = task.global_batch_size
    return StepPlan(
        rows_in_batch=train.batch_size,
        accumulated_batches=train.accumulation_steps,
        copies_of_the_model=task.parallel.data,
        rows=rows,
        tokens=rows * length,
        flops=rows * length * flops_per_token(options, length, frozen=task.model.lora is not None),
    )


def _run(train: TrainTask, loader: BatchLoader) -> RunPlan:
    steps = train.epochs * loader.steps_per_epoch
    tokens = train.epochs * loader.samples_per_epoch * loader.sequence_length
    return RunPlan(train.epochs, loader.steps_per_epoch, steps, tokens)


def _curve(train: TrainTask, run: RunPlan) -> CurvePlan:
    schedule = make_schedule(train.schedule, steps_per_epoch=run.steps_in_epoch, epochs=train.epochs)
    count = min(_SAMPLES, run.steps)
    steps = sorted({round(index * (run.steps - 1) / max(1, count - 1)) for index in range(count)})
    return CurvePlan(train.schedule.kind, tuple(steps), tuple(schedule(step) for step in steps))


def _outputs(task: Task, train: TrainTask, model: CausalLM, run: RunPlan | None) -> tuple[OutputPlan, ...]:
    outputs = [OutputPlan(str(task.output_dir / "training.jsonl"), "a row a step")]
    save = train.save
    if save is not None:
        steps = save.every_steps
        often = f"{save.every_seconds} seconds" if steps is None else f"{steps} steps"
        due = 0 if run is None or steps is None else -(-run.steps // steps)
        outputs.append(
            OutputPlan(
                str(task.output_dir / "checkpoint"),
                f"a checkpoint every {often} and at the end",
                count=due,
                kept=save.keep,
                bytes=_checkpoint_bytes(model),
            )
        )
    if not task.load.resume:
        moves = earlier_files(task.output_dir).items()
        outputs += [OutputPlan(str(path), f"of an earlier run, moves to {to}") for path, to in moves]
    return tuple(outputs)


def _checkpoint_bytes(model: CausalLM) -> int:
    """All weights, and two float32 moments of those that are trained."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return weights + 8 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
