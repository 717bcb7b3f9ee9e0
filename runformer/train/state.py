"""Where a run stands: what a checkpoint keeps of it, and how a resumed run takes that up."""

from __future__ import annotations

import logging
from typing import Any

from runformer.checkpoint import (
    KEY,
    HeldState,
    TrainingState,
    WeightSource,
    describe,
    find_resume,
    gathered,
    load_parts,
    parameter_pieces,
    state_pieces,
)
from runformer.config.task import LoraOptions, Task
from runformer.data.loader import BatchLoader
from runformer.errors import CheckpointError
from runformer.parallel.group import Group
from runformer.train.position import TrainingPosition, position_of
from runformer.train.step import TrainStep

logger = logging.getLogger(__name__)


def capture(
    step: TrainStep, position: TrainingPosition, *, batch_size: int, seed: int, lora: LoraOptions | None, whole: bool
) -> TrainingState:
    """Everything that the run needs to go on as if it had never stopped; of its tensors what this process writes.

    Tensors are shared, not copied. With ``whole`` rank 0 gets all of them, copied, and the others none; then all
    processes take part.
    """
    common: dict[str, Any] = {
        "step": position.step,
        "epoch": position.epoch,
        "samples": position.samples,
        "shift": position.shift,
        "ahead": position.ahead,
        "updates": step.optimizer.updates,
        "global_batch_size": batch_size,
        "loss_scale": step.scaler.state_dict(),
        "seed": seed,
        KEY: describe(step.model.options, lora),
    }
    if notes := step.optimizer.notes():
        common["optimizer"] = notes
    model, optimizer = step.model, step.optimizer
    pieces = parameter_pieces(model), state_pieces(model, optimizer.state(), optimizer.span)
    if whole:
        outlines = {name: (tuple(p.shape), p.dtype) for name, p in model.whole.items()}
        world = model.mesh.world
        pieces = gathered(pieces[0], outlines, world), gathered(pieces[1], optimizer.outlines(model.whole), world)
    return TrainingState(*pieces, common)


def resume(task: Task, step: TrainStep, loader: BatchLoader) -> TrainingPosition:
    """Take weights, optimizer, loss scale and position from the newest checkpoint that is intact on all ranks.

    Raises:
        CheckpointError: there is none, or it is of another model, optimizer or global batch size.
    """

    def take(source: WeightSource) -> TrainingPosition:
        load_parts(source, step.model)
        position, updates = position_of(source, loader, task.load.skip_steps)
        common = source.common or {}
        state = HeldState(source.tensors, step.model.parts)
        step.optimizer.load_state(state, updates, common.get("optimizer", {}))
        if "loss_scale" in common:
            step.scaler.load_state_dict(common["loss_scale"])
        logger.info("resuming after step %d from %s", position.step, source.path)
        return position

    model = step.model
    return find_resume(task.load, task.output_dir, model.options, take, model.mesh.world)


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
