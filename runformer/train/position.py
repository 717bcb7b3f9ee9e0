"""How far a run is, and where one that resumes goes on."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from runformer.checkpoint import WeightSource
from runformer.data.loader import BatchLoader
from runformer.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass
class TrainingPosition:
    """Steps done, the epoch of the last one (from 1), and the data cursor: samples consumed by the whole run.

    After a resume with another global batch ``step`` is ``ahead`` of the steps of the present size that come as far,
    since numbers of steps are never used twice; and after one with other rows to go on with the cursor is ``shift``
    samples ahead of what those steps consume.
    """

    step: int = 0
    epoch: int = 0
    samples: int = 0
    ahead: int = 0
    shift: int = 0

    @property
    def counted(self) -> int:
        """Steps of the present size: what epochs are counted by."""
        return self.step - self.ahead

    def advance(self, samples: int, steps_per_epoch: int) -> None:
        """Count one step."""
        self.step += 1
        self.epoch = (self.counted - 1) // steps_per_epoch + 1
        self.samples += samples


def position_of(source: WeightSource, loader: BatchLoader, skip_steps: int | None) -> tuple[TrainingPosition, int]:
    """Where a run goes on from a checkpoint, and how many updates were made (fewer than steps where some overflowed).

    With another global batch the next sample stays the next, and updates are counted anew: as if all had been of the
    present size, which is what the learning rate hangs on. With ``skip_steps`` the data goes on behind so many batches.

    Raises:
        CheckpointError: it is of another dataset.
    """
    common = source.common or {}
    step, ahead = int(common["step"]), int(common.get("ahead", 0))
    updates, counted = int(common.get("updates", step)), step - ahead
    batch = int(common.get("global_batch_size", loader.batch_size))
    expected = _samples(counted, loader, batch) + int(common.get("shift", 0))
    samples = int(common.get("samples", expected))
    if samples != expected:
        raise CheckpointError(
            f"{source.path}: after {samples} samples, but {counted} steps over this dataset are {expected}",
            hint="resume with the dataset and num_samples that the run began with",
        )
    if batch != loader.batch_size:
        before, counted = counted, _steps(samples, loader)
        ahead, updates = step - counted, updates * counted // max(1, before)
        text = "the global batch was %d samples and is %d: %d steps count as %d for epochs and the learning rate"
        logger.warning(text, batch, loader.batch_size, before, counted)
    if skip_steps is not None:
        samples = _samples(skip_steps, loader, loader.batch_size)
        logger.warning("the data goes on behind its first %d batches, as the task asks for", skip_steps)
    epoch = -(-counted // loader.steps_per_epoch)
    shift = samples - _samples(counted, loader, loader.batch_size)
    return TrainingPosition(step, epoch, samples, ahead, shift), updates


def _samples(step: int, loader: BatchLoader, batch: int) -> int:
    """Samples that so many steps of batches of a size consume."""
    in_pass = loader.samples_of_pass(batch)
    passes, steps = divmod(step, max(1, -(-in_pass // batch)))
    return passes * in_pass + steps * batch


def _steps(samples: int, loader: BatchLoader) -> int:
    """Steps that consume so many samples, or a few less."""
    passes, rest = divmod(samples, loader.samples_per_pass)
    return passes * loader.steps_per_pass + rest // loader.batch_size
