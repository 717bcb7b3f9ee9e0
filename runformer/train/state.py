"""Where a run stands: what a checkpoint keeps of it, and how a resumed run takes that up."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from runformer.checkpoint import TrainingState, WeightSource, find_resume, load_weights
from runformer.config.task import Task
from runformer.data.loader import BatchLoader
from runformer.errors import CheckpointError
from runformer.parallel.group import Group
from runformer.train.step import TrainStep

logger = logging.getLogger(__name__)


@dataclass
class TrainingPosition:
    """Steps done, the epoch of the last one (from 1), and the data cursor: samples consumed by the whole run."""

    step: int = 0
    epoch: int = 0
    samples: int = 0

    def advance(self, samples: int, steps_per_epoch: int) -> None:
        """Count one step."""
        self.step += 1
        self.epoch = (self.step - 1) // steps_per_epoch + 1
        self.samples += samples


def capture(step: TrainStep, position: TrainingPosition, *, batch_size: int, seed: int) -> TrainingState:
    """Everything that the run needs to go on as if it had never stopped. Tensors are shared, not copied."""
    common: dict[str, Any] = {
        "step": position.step,
        "epoch": position.epoch,
        "samples": position.samples,
        "updates": step.optimizer.updates,
        "global_batch_size": batch_size,
        "loss_scale": step.scaler.state_dict(),
        "seed": seed,
    }
    if notes := step.optimizer.notes():
        common["optimizer"] = notes
    model = {name: parameter.detach() for name, parameter in step.model.named_parameters()}
    return TrainingState(model, step.optimizer.state(), common)


def resume(task: Task, step: TrainStep, loader: BatchLoader) -> TrainingPosition:
    """Take weights, optimizer, loss scale and position from the newest intact checkpoint.

    Raises:
        CheckpointError: there is none, or it is of another model, optimizer or global batch size.
    """
    source = find_resume(task.load, task.output_dir, step.model.options)
    load_weights(source, dict(step.model.named_parameters()), tied=step.model.options.tie_embeddings)
    position, updates = _position(source, loader)
    assert source.common is not None, "find_resume gives training checkpoints"
    step.optimizer.load_state(source.tensors, updates, source.common.get("optimizer", {}))
    if "loss_scale" in source.common:
        step.scaler.load_state_dict(source.common["loss_scale"])
    logger.info("resuming after step %d from %s", position.step, source.path)
    return position


def require_agreement(group: Group, step: int) -> None:
    """See that all ranks go on from the same step.

    Raises:
        CheckpointError: naming who found what.
    """
    steps = group.gather(step)
    if len(set(steps)) > 1:
        found = ", ".join(f"rank {rank}: step {found}" for rank, found in enumerate(steps))
        raise CheckpointError(
            f"the ranks found different checkpoints to go on from: {found}",
            hint="let --output_dir or --load_checkpoint be a folder that all machines share",
        )


def _position(source: WeightSource, loader: BatchLoader) -> tuple[TrainingPosition, int]:
    """The position, and the number of optimizer updates (fewer than steps where some overflowed)."""
    common = source.common or {}
    step = int(common["step"])
    saved_batch = int(common.get("global_batch_size", loader.batch_size))
    if saved_batch != loader.batch_size:
        raise CheckpointError(
            f"{source.path}: made with a global batch of {saved_batch} samples, this run has {loader.batch_size}",
            hint="keep batch_size × gradient_accumulation_steps as it was, or start a new run from these weights",
        )
    epoch, in_epoch = divmod(step, loader.steps_per_epoch)
    samples = epoch * loader.samples_per_epoch + in_epoch * loader.batch_size
    position = TrainingPosition(step, epoch + (in_epoch > 0), samples)
    if common.get("samples", samples) != samples:
        raise CheckpointError(
            f"{source.path}: after {common['samples']} samples, but {step} steps over this dataset are {samples}",
            hint="resume with the dataset and num_samples that the run began with",
        )
    return position, int(common.get("updates", step))
