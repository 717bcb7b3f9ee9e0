"""What a callback is told about a run, and what it answers to stop it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

STOP: Final = True
"""What ``on_step_end`` returns to end the run after this step."""

HOOKS = ("on_train_begin", "on_step_end", "on_train_end")
"""The methods of a callback that are called; it may leave out some of them."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run as it begins.

    Attributes:
        output_dir: the folder that the run writes into.
        epochs: passes over the data.
        steps_per_epoch: steps in one of them.
        total_steps: steps of the whole run.
        steps_done: steps done before; more than 0 in a run that was resumed.
        batch_size: rows that one step learns from.
        parameters: how many numbers are trained.
    """

    output_dir: Path
    epochs: int
    steps_per_epoch: int
    total_steps: int
    steps_done: int
    batch_size: int
    parameters: int


@dataclass(frozen=True, slots=True)
class StepFacts:
    """A step that was done.

    Attributes:
        step: its number in the run, from 1.
        epoch: the epoch that it belongs to, from 1.
        total_steps: steps of the whole run.
        loss: mean over the counted tokens of the step's batch.
        grad_norm: global L2 norm of the gradients before clipping; None where clipping is off.
        lr: the learning rate that it used.
        tokens: input positions of its batch, padding included.
        seconds: how long it took.
        overflow: a gradient was not finite, so nothing was learnt.
    """

    step: int
    epoch: int
    total_steps: int
    loss: float
    grad_norm: float | None
    lr: float
    tokens: int
    seconds: float
    overflow: bool
