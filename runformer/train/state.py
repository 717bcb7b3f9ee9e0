"""Where a run stands: what a checkpoint keeps of it, and how a resumed run takes that up."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from runformer.checkpoint import TrainingState, WeightSource, find_resume, load_parts
from runformer.config.task import Task
from runformer.data.loader import BatchLoader
from runformer.errors import CheckpointError
from runformer.models.part import Part
from runformer.parallel.group import Group
from runformer.parallel.model import ParallelModel
from runformer.train.optimizer import MOMENTS
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
    return TrainingState(*gather_state(step.model, step.optimizer.state()), common)


def gather_state(
    model: ParallelModel, optimizer: Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """All parameters and the optimizer's state, whole, on rank 0, which writes them; all processes take part."""
    held = model.held()
    if model.holds_all:
        return held, optimizer
    kinds = [f"{moment}." for moment in MOMENTS] if optimizer else []
    return model.gather(held), model.gather(optimizer, kinds)


class _Held(Mapping[str, Tensor]):
    """What a process holds of an optimizer's state, ``<key>.<parameter name>``."""

    def __init__(self, tensors: Mapping[str, Tensor], parts: Mapping[str, Part]) -> None:
        self._tensors, self._parts = tensors, parts

    def __getitem__(self, key: str) -> Tensor:
        tensor, part = self._tensors[key], self._parts.get(key.partition(".")[2])
        return part.take(tensor) if part is not None and tuple(tensor.shape) == part.shape else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def resume(task: Task, step: TrainStep, loader: BatchLoader) -> TrainingPosition:
    """Take weights, optimizer, loss scale and position from the newest intact checkpoint.

    Raises:
        CheckpointError: there is none, or it is of another model, optimizer or global batch size.
    """
    source = find_resume(task.load, task.output_dir, step.model.options)
    load_parts(source, step.model)
    position, updates = _position(source, loader)
    assert source.common is not None, "find_resume gives training checkpoints"
    state = _Held(source.tensors, step.model.parts)
    step.optimizer.load_state(state, updates, source.common.get("optimizer", {}))
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
