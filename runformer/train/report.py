"""What a step tells: its row in training.jsonl, and the views of it on the console."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from runformer.config.task import Task
from runformer.data.loader import BatchLoader
from runformer.observe import (
    EpochMean,
    LossRecord,
    MetricsWriter,
    Progress,
    StepRow,
    flops_per_token,
    format_loss_line,
    format_progress_line,
    model_flops_utilization,
    peak_flops,
    peak_memory_bytes,
)
from runformer.train.position import TrainingPosition
from runformer.train.step import StepResult, TrainStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is to be told of a step besides its result.

    Attributes:
        samples: rows of all ranks.
        length: positions of each; where batches are padded to their longest row, those of this rank's.
        learning_rate: of its update.
        seconds: its whole time.
        waited: the part of that spent waiting for data.
    """

    samples: int
    length: int
    learning_rate: float
    seconds: float
    waited: float


class StepReporter:
    """Writes each step's row, where there is a writer, and every few steps MindFormers' two console lines."""

    def __init__(
        self, task: Task, step: TrainStep, loader: BatchLoader, metrics: MetricsWriter | None, progress: Progress
    ) -> None:
        assert task.train is not None, "the task trains"
        self._options = task.train
        self._step = step
        self._loader = loader
        self._metrics = metrics
        self._progress = progress
        self._device = step.model.device
        self._flops_per_token = flops_per_token(
            step.model.options, loader.sequence_length, frozen=task.model.lora is not None
        )
        self._peak_flops = peak_flops(self._device)
        self._epoch_mean = EpochMean()

    def recall(self, rows: Iterable[StepRow]) -> None:
        """Take up the epoch's mean loss from the steps before a resume."""
        for row in rows:
            self._epoch_mean.add(row.epoch, row.loss)

    def report(self, position: TrainingPosition, result: StepResult, circumstances: Circumstances) -> StepRow:
        """Tell about the step just done."""
        row = self._row(position, result, circumstances)
        if self._metrics is not None:
            self._metrics.write(row)
        # The original prints each rank's own loss, where ranks have one.
        mean = self._epoch_mean.add(row.epoch, result.local_loss)
        if position.step % self._options.loss_line.every_steps == 0:
            record = self._record(position, row, result, mean)
            logger.info(format_loss_line(record))
            logger.info(format_progress_line(record))
        self._progress.advance(row.loss, row.tokens_per_second)
        return row

    def _row(self, position: TrainingPosition, result: StepResult, circumstances: Circumstances) -> StepRow:
        tokens = circumstances.samples * circumstances.length
        tokens_per_second = tokens / circumstances.seconds
        return StepRow(
            step=position.step,
            epoch=position.epoch,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=circumstances.learning_rate,
            tokens=tokens,
            tokens_per_second=tokens_per_second,
            step_seconds=circumstances.seconds,
            mfu=model_flops_utilization(tokens_per_second, self._flops_per_token, self._peak_flops),
            peak_memory_bytes=peak_memory_bytes(self._device),
            data_seconds=circumstances.waited,
        )

    def _record(self, position: TrainingPosition, row: StepRow, result: StepResult, mean: float) -> LossRecord:
        steps_per_epoch = self._loader.steps_per_epoch
        return LossRecord(
            epoch=row.epoch,
            epochs=self._options.epochs,
            step=(position.counted - 1) % steps_per_epoch + 1,
            steps_per_epoch=steps_per_epoch,
            loss=result.local_loss,
            mean_loss=mean if self._options.loss_line.running_mean else None,
            step_seconds=row.step_seconds,
            batch_size=self._loader.batch_size,
            lr=row.lr,
            overflow=result.overflow,
            loss_scale=result.loss_scale,
            grad_norm=row.grad_norm,
            tflops=self._flops_per_token * row.tokens_per_second / 1e12,
        )
