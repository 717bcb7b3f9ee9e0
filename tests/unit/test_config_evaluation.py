"""From the evaluation sections to EvaluationTask: the dataset, its batches, and how often a training run evaluates."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_tasks import MINIMAL, MODEL, load

from runformer.config import DataOptions, MindRecordFiles
from runformer.config.task import EvaluationTask
from runformer.errors import ConfigError

LOADER = "  data_loader: {type: MindDataset, dataset_dir: eval.mindrecord}\n"
EVAL = f"eval_dataset:\n{LOADER}  input_columns: [input_ids, labels]\n"
DO_EVAL = f"{MINIMAL}do_eval: True\n{EVAL}"
ALONE = f"run_mode: eval\nload_checkpoint: rows.mindrecord\n{EVAL}{MODEL}"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK_SIZE", raising=False)
    (tmp_path / "eval.mindrecord").touch()


def evaluation_of(folder: Path, text: str, *arguments: str) -> EvaluationTask:
    evaluation = load(folder, text, *arguments).evaluation
    assert evaluation is not None
    return evaluation


def error_of(folder: Path, text: str, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *arguments)
    assert caught.value.exit_code == 78
    return str(caught.value)


def test_beside_training(tmp_path: Path) -> None:
    task = load(tmp_path, DO_EVAL)
    assert task.train is not None
    assert task.train.data.section == "train_dataset"
    assert task.evaluation == EvaluationTask(
        DataOptions(
            MindRecordFiles((tmp_path / "eval.mindrecord",)), ("input_ids", "labels"), shuffle=None, seed=1,
            drop_remainder=False, pad_token_id=0, section="eval_dataset",
        ),
        batch_size=1,
        every_steps=100,
    )  # fmt: skip


def test_by_itself(tmp_path: Path) -> None:
    task = load(tmp_path, ALONE)
    assert (task.train, task.predict) == (None, None)
    assert task.evaluation is not None
    assert task.load.path == tmp_path / "rows.mindrecord"
    # Of a training run's settings those that make no sense here are not even read.
    assert not load(tmp_path, ALONE, "--resume_training", "True").load.resume
    assert evaluation_of(tmp_path, f"{ALONE}eval_step_interval: -1\n").every_steps is None


@pytest.mark.parametrize("text", [MINIMAL, f"{MINIMAL}do_eval: False\n{EVAL}"])
def test_not_unless_asked_for(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text).evaluation is None


@pytest.mark.parametrize(
    ("lines", "every_steps", "every_epochs"),
    [
        ("", 100, None),
        ("eval_step_interval: 500\neval_epoch_interval: -1\n", 500, None),
        ("eval_step_interval: -1\neval_epoch_interval: 2\n", None, 2),
        ("eval_step_interval: 7\neval_epoch_interval: 1\n", 7, 1),
    ],
)
def test_how_often(tmp_path: Path, lines: str, every_steps: int | None, every_epochs: int | None) -> None:
    evaluation = evaluation_of(tmp_path, DO_EVAL + lines)
    assert (evaluation.every_steps, evaluation.every_epochs) == (every_steps, every_epochs)


def test_never_is_an_error(tmp_path: Path) -> None:
    error = error_of(tmp_path, f"{DO_EVAL}eval_step_interval: -1\n")
    assert "do_eval is True, but eval_step_interval and eval_epoch_interval are off: set one of them" in error


@pytest.mark.parametrize("run", [DO_EVAL, ALONE])
def test_the_metric_is_perplexity(tmp_path: Path, run: str) -> None:
    assert evaluation_of(tmp_path, f"{run}metric: {{type: PerplexityMetric}}\n").batch_size == 1
    error = error_of(tmp_path, f"{run}metric: {{type: ADGENMetric}}\n")
    assert "metric.type is 'ADGENMetric'; supported: PerplexityMetric" in error


def test_the_batch_size_is_the_dataset_s_else_the_runner_s(tmp_path: Path) -> None:
    assert evaluation_of(tmp_path, f"{ALONE}runner_config: {{batch_size: 3}}\n").batch_size == 3
    assert evaluation_of(tmp_path, ALONE, "--batch_size", "5").batch_size == 5
    own = ("--eval_dataset.batch_size", "8")
    assert evaluation_of(tmp_path, DO_EVAL, "--batch_size", "5", *own).batch_size == 8


def test_num_samples_is_of_both_datasets(tmp_path: Path) -> None:
    assert evaluation_of(tmp_path, ALONE, "--num_samples", "4").data.num_samples == 4
    task = load(tmp_path, DO_EVAL, "--num_samples", "4", "--eval_dataset.data_loader.num_samples", "2")
    assert task.train is not None
    assert task.evaluation is not None
    assert (task.train.data.num_samples, task.evaluation.data.num_samples) == (4, 2)
    assert load(tmp_path, MINIMAL, "--num_samples", "4").evaluation is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--eval_dataset_dir", "gone"), "eval_dataset.data_loader.dataset_dir is 'gone'"),
        (("--eval_dataset.data_loader.dataset_dir", "None"), "is not set: --eval_dataset_dir PATH gives the dataset"),
        (("--load_checkpoint", ""), "load_checkpoint is not set: --load_checkpoint PATH gives the weights"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in error_of(tmp_path, ALONE, *arguments)
