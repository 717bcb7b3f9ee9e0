"""The loss and perplexity of a model on a dataset that it is not trained on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from runformer.config.launched import launched
from runformer.config.layout import ParallelOptions
from runformer.config.task import EvaluationTask, Task
from runformer.data import IGNORED
from runformer.data.batch import TokenBatch
from runformer.data.dataset import TokenDataset
from runformer.data.loader import BatchLoader
from runformer.data.order import sample_order
from runformer.errors import DataError
from runformer.models.decoder import CausalLM
from runformer.models.families import resolve_options
from runformer.observe import EvaluationRow, Progress, append_row, setup_logging
from runformer.parallel.agreement import require_same_task
from runformer.parallel.device import resolve_device
from runformer.parallel.group import alone, join
from runformer.parallel.inputs import Inputs
from runformer.parallel.mesh import Mesh, lay_out
from runformer.parallel.model import ParallelModel
from runformer.train.loss import cross_entropy, vocabulary_of
from runformer.train.position import TrainingPosition
from runformer.train.setup import build_for_training

logger = logging.getLogger(__name__)


def evaluate(task: Task) -> None:
    """Run an eval task: one pass over its dataset with the weights that it names."""
    assert task.evaluation is not None, "the task evaluates"
    place = launched()
    setup_logging(task.output_dir / "log", 0 if place is None else place.rank, notices=task.notices)
    world = join(resolve_device(task.device))
    require_same_task(world, task)
    mesh = lay_out(task.parallel, world)
    evaluator = Evaluator(task, mesh)
    model, source = build_for_training(task, mesh)
    common = (source.common if source is not None else None) or {}
    with Progress(evaluator.batches, enabled=mesh.world.is_first) as progress:
        row = evaluator(model, common.get("step"), common.get("epoch"), progress.advance)
    if mesh.world.is_first:
        path = evaluation_path(task.output_dir)
        append_row(path, row)
        logger.info("the figures are in %s", path)
    mesh.world.leave()


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

    def __init__(self, task: Task, mesh: Mesh | None = None) -> None:
        assert task.evaluation is not None, "the task evaluates"
        self._mesh = mesh or lay_out(ParallelOptions(), alone(torch.device("cpu")))
        options: EvaluationTask = task.evaluation
        dataset = TokenDataset(options.data, task.model.sequence_length, resolve_options(task.model).vocab_size)
        order = sample_order(len(dataset), options.data.shuffle, options.data.seed)
        # What is left over hangs on the batch size of the task, not on how many ranks there are.
        by_one = BatchLoader(dataset, order, options.batch_size, options.data.drop_remainder)
        self._loader = BatchLoader(
            dataset,
            order,
            options.batch_size * self._mesh.options.data,
            drop_remainder=False,
            num_samples=by_one.samples_per_pass,
            rank=self._mesh.place.data,
            world_size=self._mesh.options.data,
            pin=self._mesh.world.device.type == "cuda",
        )
        self._options = options
        self._require_tokens(dataset.name)

    @property
    def batches(self) -> int:
        """How many batches a pass takes."""
        return self._loader.steps_per_epoch

    def _require_tokens(self, name: str) -> None:
        with self._loader.batches() as stream:
            counted = sum(int((next(stream).labels_BL != IGNORED).sum()) for _ in range(self.batches))
            if self._over_ranks(0.0, counted)[1] == 0:
                hint = "all its tokens are padding, or all its labels are ignore_token_id"
                raise DataError(f"{name}: no token counts in the loss, so there is nothing to evaluate", hint=hint)

    def is_due(self, position: TrainingPosition, steps_per_epoch: int) -> bool:
        """Whether a training run that stands at ``position`` evaluates there."""
        steps, epochs = self._options.every_steps, self._options.every_epochs
        whole_epochs, rest = divmod(position.counted, steps_per_epoch)
        by_steps = steps is not None and position.step % steps == 0
        return by_steps or (epochs is not None and rest == 0 and whole_epochs % epochs == 0)

    @torch.no_grad()
    def __call__(
        self,
        model: ParallelModel,
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
        started, training = time.perf_counter(), model.train(False)
        total, counted = 0.0, 0
        with self._loader.batches() as stream:
            for inputs in self._micro_batches(model, stream):
                loss, tokens = _sums(model, inputs)
                total, counted = total + loss, counted + tokens
                tell(total / max(1, counted), counted / (time.perf_counter() - started))
        if not model.answers_for_loss:
            total, counted = 0.0, 0
        total, counted = self._over_ranks(total, counted)
        model.train(training)
        seconds = time.perf_counter() - started
        row = EvaluationRow(step, epoch, total / counted, counted, self._loader.samples_per_epoch, seconds)
        (logger.info if math.isfinite(row.loss) else logger.warning)("%s", row)
        return row

    def _micro_batches(self, model: ParallelModel, stream: Iterator[TokenBatch]) -> Iterator[list[Inputs]]:
        """Batches one by one; for a pipeline as many at a time as it has stages, all of one size."""
        stages = self._mesh.options.pipeline
        for begin in range(0, self.batches, stages):
            batches = [next(stream) for _ in range(begin, min(begin + stages, self.batches))]
            if stages > 1:
                batches = [batch.padded(self._options.batch_size) for batch in batches]
                batches += [batches[0].without_labels()] * (stages - len(batches))
            yield [model.inputs(batch) for batch in batches]

    def _over_ranks(self, total: float, counted: int) -> tuple[float, int]:
        world = self._mesh.world
        if world.size == 1:
            return total, counted
        sums = torch.tensor([total, counted], dtype=torch.float64, device=world.device)
        total, tokens = world.sum(sums).tolist()
        return total, int(tokens)


def _sums(model: ParallelModel, micro_batches: list[Inputs]) -> tuple[float, int]:
    """The sum of the token losses of some batches, where the last stage is here, and how many tokens that are."""
    vocabulary = vocabulary_of(model)

    def loss_of(stage: CausalLM, hidden_BCD: Tensor, inputs: Inputs, _: int) -> Tensor:
        return cross_entropy(hidden_BCD, stage.head_weight_VD, inputs.labels_BC, 1.0, vocabulary)

    losses = model.forward(micro_batches, loss_of)
    return sum(loss.item() for loss in losses), sum(inputs.counted for inputs in micro_batches)
