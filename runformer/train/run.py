"""A training task from its Task to its last step."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from runformer.config.launched import launched
from runformer.config.task import PluginOptimizerOptions, Task, TrainTask
from runformer.data.batch import TokenBatch
from runformer.data.loader import BatchLoader
from runformer.errors import Preempted
from runformer.observe import MetricsWriter, Progress, StepRow, append_row, read_rows, setup_logging
from runformer.observe.pulse import pulse
from runformer.parallel.agreement import require_same_task
from runformer.parallel.compiler import eagerly
from runformer.parallel.device import resolve_device
from runformer.parallel.group import Group, alone, join
from runformer.parallel.mesh import Mesh, lay_out
from runformer.parallel.model import ParallelModel
from runformer.parallel.shards import Shards
from runformer.parallel.strategy import write_strategies
from runformer.plugins import RunFacts
from runformer.plugins.facts import StepFacts
from runformer.train.callbacks import Callbacks, step_facts
from runformer.train.evaluate import Evaluator, evaluation_path
from runformer.train.loss_scale import LossScaler
from runformer.train.optimizer import NamedAdamW, NamedOptimizer
from runformer.train.position import TrainingPosition
from runformer.train.report import Circumstances, StepReporter
from runformer.train.restart import resume_after_restart
from runformer.train.saving import FOLDERS, Saver
from runformer.train.schedule import make_schedule
from runformer.train.setup import build_for_training, check_tokenizer, open_data, require_same_data
from runformer.train.state import capture, require_agreement, resume
from runformer.train.step import TrainStep
from runformer.train.stop import StopSignals

logger = logging.getLogger(__name__)


@dataclass
class TrainingRun:
    """All parts of a run, and how far it has come."""

    task: Task
    options: TrainTask
    step: TrainStep
    loader: BatchLoader
    schedule: Callable[[int], float]
    mesh: Mesh
    saver: Saver | None
    callbacks: Callbacks
    evaluator: Evaluator | None
    position: TrainingPosition = field(default_factory=TrainingPosition)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, those before a resume included."""
        return self.options.epochs * self.loader.steps_per_epoch + self.position.ahead

    @property
    def metrics_path(self) -> Path:
        """The run's ``training.jsonl``."""
        return self.task.output_dir / "training.jsonl"

    @property
    def facts(self) -> RunFacts:
        """What callbacks are told before the first step."""
        return RunFacts(
            output_dir=self.task.output_dir,
            epochs=self.options.epochs,
            steps_per_epoch=self.loader.steps_per_epoch,
            total_steps=self.total_steps,
            steps_done=self.position.step,
            batch_size=self.loader.batch_size,
            parameters=sum(p.numel() for p in self.step.model.whole.values() if p.requires_grad),
        )


def train(task: Task) -> None:
    """Run a training task to its end; a finished one is said to be finished.

    Raises:
        Preempted: the process was told to end; it has saved, where the task saves at all.
    """
    place = launched()
    rank = 0 if place is None else place.rank
    pulse().stamp(0, "start")
    setup_logging(task.output_dir / "log", rank, notices=task.notices)
    pulse().stamp(0, "join")
    world = join(resolve_device(task.device))
    require_same_task(world, task)
    task = resume_after_restart(task)
    pulse().stamp(0, "load")
    run = prepare(task, world)
    if task.parallel.devices > 1:
        _save_strategy(run)
    if not task.load.resume:
        world.first(lambda: set_aside_earlier_run(task.output_dir))
    if run.position.step >= run.total_steps:
        logger.info("nothing left to do: step %d of %d is done", run.position.step, run.total_steps)
    else:
        fit(run)
    pulse().stamp(run.position.step, "end")
    world.leave()


def _save_strategy(run: TrainingRun) -> None:
    model, mesh, task = run.step.model, run.mesh, run.task
    folder, ranks = task.output_dir / "strategy", [mesh.world.rank]
    write_strategies(folder, ranks, mesh.options, model.options, model.precision, task.model.lora)


def prepare(task: Task, world: Group | None = None) -> TrainingRun:
    """Open the data, build the model, and bring both to where the run starts."""
    assert task.train is not None, "the task trains"
    options = task.train
    mesh = lay_out(task.parallel, world or alone(resolve_device(task.device)))
    check_tokenizer(task)
    loader = open_data(task, mesh)
    require_same_data(mesh.world, options.data, loader)
    evaluator = None if task.evaluation is None else Evaluator(task, mesh)
    schedule = make_schedule(options.schedule, steps_per_epoch=loader.steps_per_epoch, epochs=options.epochs)
    callbacks = Callbacks(options.callbacks if mesh.world.is_first else ())
    model, _ = build_for_training(task, mesh)
    optimizer = make_optimizer(model, options, schedule)
    scaler = LossScaler(options.loss_scale)
    pulse().stamp(0, "meet")
    step = TrainStep(model, optimizer, scaler, options.max_grad_norm, task.seed, options.loss_mean)
    run = TrainingRun(task, options, step, loader, schedule, mesh, _saver(task, step), callbacks, evaluator)
    if task.load.resume:
        pulse().stamp(0, "load")
        run.position = resume(task, step, loader)
        pulse().stamp(0, "meet")
        require_agreement(mesh.world, run.position.step)
    return run


def make_optimizer(model: ParallelModel, options: TrainTask, schedule: Callable[[int], float]) -> NamedOptimizer:
    """The optimizer of a run, before its first update."""
    if not isinstance(options.optimizer, PluginOptimizerOptions):
        mesh = model.mesh
        return NamedAdamW(model, options.optimizer, Shards(mesh.shards) if mesh.options.zero == 1 else None)
    # Imported late: PyTorch's optimizer classes import its compiler, which takes a second.
    from runformer.train.plugin_optimizer import NamedPluginOptimizer

    return NamedPluginOptimizer(model, options.optimizer, schedule(0))


def set_aside_earlier_run(output_dir: Path) -> None:
    """Rename what an earlier run left here: its rows must not mix with ours, nor a resume find its steps."""
    moves = earlier_files(output_dir)
    for path, destination in moves.items():
        destination.parent.mkdir(exist_ok=True)
        path.rename(destination)
    if moves:
        folder = next(iter(moves.values())).parent
        logger.info("an earlier run's rows and checkpoints are now in %s", folder)


def earlier_files(output_dir: Path) -> dict[Path, Path]:
    """What an earlier run left in the way, and where it would be moved to."""
    number = next(n for n in itertools.count(1) if not (output_dir / f"run_{n}").exists())
    paths = (output_dir / name for name in ("training.jsonl", "evaluation.jsonl", *FOLDERS))
    return {path: output_dir / f"run_{number}" / path.name for path in paths if path.exists()}


def _saver(task: Task, step: TrainStep) -> Saver | None:
    if task.train is None or task.train.save is None:
        return None
    model = step.model
    trained = frozenset(name for name, parameter in model.whole.items() if parameter.requires_grad)
    return Saver(task.output_dir, task.train.save, model.mesh.world, trained)


def fit(run: TrainingRun) -> None:
    """The loop: batch, step, report, save; it ends early where a callback or a signal says so."""
    position, loader, is_first = run.position, run.loader, run.mesh.world.is_first
    with (
        MetricsWriter(run.metrics_path) if is_first else nullcontext() as metrics,
        Progress(run.total_steps, position.step, enabled=is_first) as progress,
        loader.batches(position.samples) as batches,
        StopSignals() as signals,
    ):
        reporter = StepReporter(run.task, run.step, run.loader, metrics, progress)
        reporter.recall(_earlier_rows(run))
        run.callbacks.on_train_begin(run.facts)
        pulse().steps(position.step, run.total_steps)
        stopping = False
        while position.step < run.total_steps and not stopping:
            started = time.perf_counter()
            number, samples = position.step + 1, loader.batch_samples(position.samples)
            pulse().stamp(number, "data")
            batch = next(batches)
            waited = time.perf_counter() - started
            learning_rate = run.schedule(run.step.optimizer.updates)
            micro_batches = _micro_batches(run, batch)
            result = run.step(number, micro_batches, learning_rate, lambda: signals.came)
            position.advance(samples, loader.steps_per_epoch)
            seconds = time.perf_counter() - started
            length = batch.inputs_BL.shape[1]
            row = reporter.report(position, result, Circumstances(samples, length, learning_rate, seconds, waited))
            pulse().steps(position.step, run.total_steps, row.loss, row.tokens_per_second)
            facts = step_facts(row, total_steps=run.total_steps, overflow=result.overflow)
            stopping = _wants_to_stop(run, facts)
            _evaluate(run)
            _save(run, metrics, ending=stopping or result.stop or position.step == run.total_steps)
            if result.stop and position.step < run.total_steps:
                raise _preempted(run)
        run.callbacks.on_train_end(facts)


def _micro_batches(run: TrainingRun, batch: TokenBatch) -> list[TokenBatch]:
    """Cut this process's rows of a step; a pipeline needs as many micro-batches in each, of one size."""
    rows = run.options.batch_size
    if run.mesh.options.pipeline > 1:
        batch = batch.padded(rows * run.options.accumulation_steps)
    return batch.split(rows)


def _earlier_rows(run: TrainingRun) -> Iterator[StepRow]:
    """The rows of the steps before a resume, which rank 0 has."""
    if run.mesh.world.is_first:
        yield from (row for row in read_rows(run.metrics_path) if row.step <= run.position.step)


def _wants_to_stop(run: TrainingRun, facts: StepFacts) -> bool:
    """Whether a callback ends the run; they are rank 0's, and the others hear of it."""
    stopping = run.callbacks.on_step_end(facts)
    return run.mesh.world.any(stopping) if run.options.callbacks else stopping


def _evaluate(run: TrainingRun) -> None:
    position = run.position
    if run.evaluator is None or not run.evaluator.is_due(position, run.loader.steps_per_epoch):
        return
    pulse().stamp(position.step, "evaluate")
    with eagerly():  # graphs of its shapes would change those that training gets later
        evaluation = run.evaluator(run.step.model, position.step, position.epoch)
    if run.mesh.world.is_first:
        append_row(evaluation_path(run.task.output_dir), evaluation)


def _save(run: TrainingRun, metrics: MetricsWriter | None, *, ending: bool) -> None:
    """Save where that is due, and see to what was begun before. All processes take part."""
    saver, position = run.saver, run.position
    if saver is None:
        return
    saver.poll()
    if ending or saver.is_due(position.step):
        if metrics is not None:
            metrics.sync()  # a step's row is on disk before its checkpoint is
        save(run)
    if ending:
        saver.finish()


def save(run: TrainingRun) -> None:
    """Write a checkpoint of where the run stands. All processes take part."""
    assert run.saver is not None, "the task saves"
    pulse().stamp(run.position.step, "save")
    batch_size, seed, lora = run.loader.batch_size, run.task.seed, run.task.model.lora
    run.saver.save(capture(run.step, run.position, batch_size=batch_size, seed=seed, lora=lora, whole=run.saver.whole))


def _preempted(run: TrainingRun) -> Preempted:
    done = f"told to end: the run stops after step {run.position.step} of {run.total_steps}"
    if run.options.save is None:
        return Preempted(f"{done}, and this task saves nothing")
    how = "--resume_training True" + (", without --load_checkpoint," if run.task.load.path else "")
    return Preempted(f"{done}, and has saved: {how} goes on from there")
