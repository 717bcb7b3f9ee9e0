"""The loss and perplexity of a model on a dataset that it is not trained on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from runformer.config.launched import launched
from runformer.config.task import EvaluationTask, Task
from runformer.data import IGNORED
from runformer.data.batch import TokenBatch
from runformer.data.dataset import TokenDataset
from runformer.data.loader import BatchLoader
from runformer.data.order import SampleOrder
from runformer.errors import DataError
from runformer.models.decoder import CausalLM
from runformer.models.families import resolve_options
from runformer.observe import EvaluationRow, Progress, append_row, setup_logging
from runformer.parallel.device import resolve_device
from runformer.parallel.group import Group, alone, join
from runformer.train.loss import cross_entropy
from runformer.train.setup import build_for_training
from runformer.train.state import TrainingPosition
from runformer.train.step import attention_mask

logger = logging.getLogger(__name__)


def evaluate(task: Task) -> None:
    """Run an eval task: one pass over its dataset with the weights that it names."""
    assert task.evaluation is not None, "the task evaluates"
    place = launched()
    setup_logging(task.output_dir / "log", 0 if place is None else place.rank, notices=task.notices)
    group = join(resolve_device(task.device))
    evaluator = Evaluator(task, group)
    model, source = build_for_training(task, group.device)
    common = (source.common if source is not None else None) or {}
    with Progress(evaluator.batches, enabled=group.is_first) as progress:
        row = evaluator(model, common.get("step"), common.get("epoch"), progress.advance)
    if group.is_first:
        path = evaluation_path(task.output_dir)
        append_row(path, row)
        logger.info("the figures are in %s", path)
    group.leave()


def evaluation_path(output_dir: Path) -> Path:
    """Where a run's evaluations are written."""
    return output_dir / "evaluation.jsonl"


class Evaluator:
    """The evaluation dataset of a task, opened; called with a model it passes over it once, all ranks together.

    Every row is read when it is opened, which takes far less time than a pass: a mistake shows before the first
    training step, not in the middle of the run.

    Raises:
        DataError: as ``TokenDataset`` and its rows; no token counts.
        ConfigError: as ``TokenDataset``.
    """

    def __init__(self, task: Task, group: Group | None = None) -> None:
        assert task.evaluation is not None, "the task evaluates"
        self._group = group or alone(torch.device("cpu"))
        options: EvaluationTask = task.evaluation
        dataset = TokenDataset(options.data, task.model.sequence_length, resolve_options(task.model).vocab_size)
        order = SampleOrder(len(dataset), options.data.shuffle, options.data.seed)
        # What is left over hangs on the batch size of the task, not on how many ranks there are.
        by_one = BatchLoader(dataset, order, options.batch_size, options.data.drop_remainder)
        self._loader = BatchLoader(
            dataset,
            order,
            options.batch_size * self._group.size,
            drop_remainder=False,
            num_samples=by_one.samples_per_epoch,
            rank=self._group.rank,
            world_size=self._group.size,
        )
        self._options = options
        self._require_tokens(dataset.name)

    @property
    def batches(self) -> int:
        """How many batches a pass takes."""
        return self._loader.steps_per_epoch

    def _require_tokens(self, name: str) -> None:
        with self._loader.batches() as stream:
            counted = sum(_counted(next(stream)) for _ in range(self.batches))
            if self._over_ranks(0.0, counted)[1] == 0:
                hint = "all its tokens are padding, or all its labels are ignore_token_id"
                raise DataError(f"{name}: no token counts in the loss, so there is nothing to evaluate", hint=hint)

    def is_due(self, position: TrainingPosition, steps_per_epoch: int) -> bool:
        """Whether a training run that stands at ``position`` evaluates there."""
        steps, epochs = self._options.every_steps, self._options.every_epochs
        whole_epochs, rest = divmod(position.step, steps_per_epoch)
        by_steps = steps is not None and position.step % steps == 0
        return by_steps or (epochs is not None and rest == 0 and whole_epochs % epochs == 0)

    @torch.no_grad()
    def __call__(
        self,
        model: CausalLM,
        step: int | None,
        epoch: int | None,
        tell: Callable[[float, float], None] = lambda _loss, _tokens_per_second: None,
    ) -> EvaluationRow:
        """The mean loss over all counted tokens of the dataset, so that batches never change it; logs one line.

        Args:
            model: left in the mode, training or not, that it came in. Nothing random is drawn.
            step: steps that its weights have learnt for.
            epoch: likewise.
            tell: is told the loss so far and the speed after each batch.
        """
        started, training = time.perf_counter(), model.training
        model.eval()
        total, counted = 0.0, 0
        with self._loader.batches() as stream:
            for _ in range(self.batches):
                loss, tokens = _sums(model, next(stream))
                total, counted = total + loss, counted + tokens
                tell(total / max(1, counted), counted / (time.perf_counter() - started))
        total, counted = self._over_ranks(total, counted)
        model.train(training)
        seconds = time.perf_counter() - started
        row = EvaluationRow(step, epoch, total / counted, counted, self._loader.samples_per_epoch, seconds)
        (logger.info if math.isfinite(row.loss) else logger.warning)("%s", row)
        return row

    def _over_ranks(self, total: float, counted: int) -> tuple[float, int]:
        if self._group.size == 1:
            return total, counted
        sums = torch.tensor([total, counted], dtype=torch.float64, device=self._group.device)
        total, tokens = self._group.sum(sums).tolist()
        return total, int(tokens)


def _sums(model: CausalLM, batch: TokenBatch) -> tuple[float, int]:
    """The sum of a batch's token losses, and how many tokens that are."""
    counted = _counted(batch)
    batch = batch.to(model.device)
    hidden_BLD = model(batch.inputs_BL, mask=attention_mask(batch))
    return cross_entropy(hidden_BLD, model.head_weight_VD, batch.labels_BL, 1.0).item(), counted


def _counted(batch: TokenBatch) -> int:
    return int((batch.labels_BL != IGNORED).sum())
