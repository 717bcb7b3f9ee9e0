"""The two console lines of MindFormers' MFLossMonitor, byte for byte: people's scripts read them.

{ Epoch:[  1/  2], step:[    8/   16], loss:[5.083/5.808], per_step_time: 20ms, lr: 0.0029242425, overflow cond: ...
   25.0% |████████████                                      | 198.04070 samples/s/p  0:00:00 }
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

_BAR_CELLS = 50


@dataclass(frozen=True, slots=True)
class LossRecord:
    """What the lines say about one optimizer step, or about the steps since the line before.

    Attributes:
        epoch: 1-based.
        step: 1-based, in its epoch.
        loss: of this step.
        mean_loss: over the epoch so far; None prints ``loss`` alone, as MindFormers does in sink mode.
        step_seconds: the time of one step.
        batch_size: samples that one device takes in a step.
        grad_norm: before clipping; None where clipping is off.
        tflops: model TFLOP/s of one device; None leaves the field out.
    """

    epoch: int
    epochs: int
    step: int
    steps_per_epoch: int
    loss: float
    mean_loss: float | None
    step_seconds: float
    batch_size: int
    lr: float
    overflow: bool
    loss_scale: float
    grad_norm: float | None
    tflops: float | None


class EpochMean:
    """The mean loss of the epoch so far. Fed with the rows of ``training.jsonl``, it goes on after a resume."""

    def __init__(self) -> None:
        self._epoch = 0
        self._total = 0.0
        self._count = 0

    def add(self, epoch: int, loss: float) -> float:
        """Count one step's loss and return the mean; another epoch starts afresh."""
        if epoch != self._epoch:
            self._epoch, self._total, self._count = epoch, 0.0, 0
        self._total += loss
        self._count += 1
        return self._total / self._count


def format_loss_line(record: LossRecord) -> str:
    """The first line: position, loss, time, learning rate, overflow, gradient norm, throughput."""
    fields = (
        f"Epoch:[{record.epoch:3d}/{record.epochs:3d}]",
        f"step:[{record.step:5d}/{record.steps_per_epoch:5d}]",
        _loss_field(record),
        f"per_step_time: {int(record.step_seconds * 1000)}ms",
        f"lr: {_float32(record.lr)}",
        f"overflow cond: {record.overflow}",
        f"loss_scale: {float(record.loss_scale)}",
        f"global_norm: {_one_element(record.grad_norm)}",
        *([] if record.tflops is None else [f"train_throughput_per_npu: {record.tflops:.3f}T"]),
    )
    return f"{{ {', '.join(fields)}"


def format_progress_line(record: LossRecord) -> str:
    """The second line: share of the whole run, a bar of 50 cells, samples a second, time left."""
    total = record.epochs * record.steps_per_epoch
    done = (record.epoch - 1) * record.steps_per_epoch + record.step
    percent = 100 * done / total
    cells = "█" * int(_BAR_CELLS * done / total)
    time_left = timedelta(seconds=int(record.step_seconds * (total - done)))
    samples_per_second = record.batch_size / record.step_seconds
    return f"  {percent:4.1f}% |{cells:<{_BAR_CELLS}}| {samples_per_second:.5f} samples/s/p  {time_left} }}"


def _loss_field(record: LossRecord) -> str:
    if record.mean_loss is None:
        return f"loss: {record.loss:5.3f}"
    return f"loss:[{record.loss:5.3f}/{record.mean_loss:5.3f}]"


# numpy is imported late: config errors are to show before anything heavy is loaded.


def _float32(value: float) -> str:
    import numpy as np

    return str(np.float32(value))


def _one_element(value: float | None) -> str:
    """The norm as MindFormers holds it: an array of one float32, in numpy's way of printing arrays."""
    import numpy as np

    return "None" if value is None else np.array2string(np.array([value], np.float32), precision=8, threshold=1)
