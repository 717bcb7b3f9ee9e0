"""The commands of evaluation: by itself, and in between while training."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

import numpy as np
import pytest
from tiny_task import TinyTask

from runformer.data.mindrecord import Column, MindRecordWriter

DO_EVAL = ("--do_eval", "True", "--eval_dataset_dir", "data.mindrecord", "--eval_step_interval", "4")
COLUMNS = ("--eval_dataset.input_columns", "[input_ids, labels]")


def evaluations(tiny: TinyTask, output: str = "output") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tiny.folder / output / "evaluation.jsonl").read_text().splitlines()]


def figures(tiny: TinyTask, output: str) -> list[tuple[float, float, float]]:
    return [(row["loss"], row["grad_norm"], row["lr"]) for row in tiny.rows(output)]


def test_training_does_not_notice_that_it_is_evaluated(tiny: TinyTask) -> None:
    lora = "{pet_type: lora, lora_rank: 2, lora_alpha: 4, lora_dropout: 0.3, target_modules: .*wq}"
    arguments = ("--model.model_config.pet_config", lora, "--epochs", "1")
    assert tiny.run(*arguments, "--output_dir", "plain").returncode == 0
    done = tiny.run(*arguments, *DO_EVAL, *COLUMNS, "--eval_epoch_interval", "1", "--output_dir", "watched")
    assert done.returncode == 0, done.stderr
    assert figures(tiny, "plain") == figures(tiny, "watched")
    assert [(row["step"], row["epoch"]) for row in evaluations(tiny, "watched")] == [(4, 1), (8, 1), (10, 1)]
    for tensors in ("tiny-model-0000000-0000001.safetensors", "tiny-opt-0000000-0000001.safetensors"):
        name = f"checkpoint/iteration_00000010/{tensors}"
        assert (tiny.folder / "plain" / name).read_bytes() == (tiny.folder / "watched" / name).read_bytes()
    alone = ("--run_mode", "eval", "--load_checkpoint", "watched", *arguments[:2], *DO_EVAL[2:4], *COLUMNS)
    assert tiny.run(*alone).returncode == 0
    assert evaluations(tiny)[0]["loss"] == evaluations(tiny, "watched")[-1]["loss"]  # with the adapters, no dropout


def test_a_resumed_run_evaluates_the_same(tiny: TinyTask) -> None:
    """From a checkpoint before its last evaluation, too: a step's later row says the same as its earlier one."""
    constant = ("--lr_schedule.type", "ConstantWarmUpLR", "--lr_schedule.learning_rate", "1e-3")
    arguments = (*DO_EVAL, *COLUMNS, *constant, "--epochs", "2")
    assert tiny.run(*arguments, "--output_dir", "whole").returncode == 0
    assert tiny.run(*arguments, "--output_dir", "parts", "--epochs", "1").returncode == 0
    for step in (9, 10):
        shutil.rmtree(tiny.folder / f"parts/checkpoint/iteration_{step:08}")
    with (tiny.folder / "parts/evaluation.jsonl").open("a") as file:
        file.write('{"step": 12, "epoch": 2, "lo')  # a row that a crash cut off
    resumed = tiny.run(*arguments, "--output_dir", "parts", "--resume_training", "True")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 6" in resumed.stdout
    whole, parts = ({row["step"]: row["loss"] for row in evaluations(tiny, name)} for name in ("whole", "parts"))
    assert parts == whole
    assert list(whole) == [4, 8, 12, 16, 20]


def test_evaluating_a_checkpoint(tiny: TinyTask) -> None:
    assert tiny.run(*DO_EVAL, *COLUMNS, "--epochs", "1", "--eval_step_interval", "10").returncode == 0
    done = tiny.run(
        "--run_mode", "eval", "--load_checkpoint", "output", "--eval_dataset_dir", "data.mindrecord",
        "--output_dir", "figures", "--batch_size", "7", *COLUMNS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = evaluations(tiny, "figures")
    assert (row["step"], row["epoch"], row["samples"]) == (10, 1, 20)
    assert row["loss"] == pytest.approx(evaluations(tiny)[-1]["loss"], abs=1e-6)
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
    assert f"evaluation after step 10: loss {row['loss']:.4f}, perplexity" in done.stdout
    assert sorted(path.name for path in (tiny.folder / "figures").iterdir()) == ["evaluation.jsonl", "log"]


def test_an_eval_run_beside_a_training_run_harms_nothing(tiny: TinyTask) -> None:
    assert tiny.run(*DO_EVAL, *COLUMNS, "--epochs", "1").returncode == 0
    before = {path: path.read_bytes() for path in (tiny.folder / "output").rglob("*.safetensors")}
    rows = (tiny.folder / "output/training.jsonl").read_bytes()
    done = tiny.run("--run_mode", "eval", "--load_checkpoint", "output", *DO_EVAL[2:4], *COLUMNS)
    assert done.returncode == 0, done.stderr
    assert before == {path: path.read_bytes() for path in (tiny.folder / "output").rglob("*.safetensors")}
    assert (tiny.folder / "output/training.jsonl").read_bytes() == rows
    assert len(evaluations(tiny)) == 3
    # A fresh training run sets the figures aside with the rest.
    assert tiny.run("--epochs", "1").returncode == 0
    assert (tiny.folder / "output/run_1/evaluation.jsonl").is_file()
    assert not (tiny.folder / "output/evaluation.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((*DO_EVAL, "--eval_dataset_dir", "gone"), 78, "eval_dataset.data_loader.dataset_dir is 'gone'"),
        (DO_EVAL[:2], 78, "eval_dataset.data_loader.dataset_dir is not set: --eval_dataset_dir PATH"),
        ((*DO_EVAL, "--eval_dataset.input_columns", "[input_id]"), 1, "eval_dataset.input_columns names the columns"),
        ((*DO_EVAL, "--eval_step_interval", "-1"), 78, "do_eval is True, but eval_step_interval and eval_epoch_int"),
        ((*DO_EVAL, "--metric.type", "Accuracy"), 78, "metric.type is 'Accuracy'; supported: PerplexityMetric"),
        (("--run_mode", "eval", *DO_EVAL[2:4]), 78, "load_checkpoint is not set"),
    ],
)
def test_mistakes_show_before_the_first_step(tiny: TinyTask, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = tiny.run(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert words in done.stderr
    assert not (tiny.folder / "output/training.jsonl").exists()


def test_rows_of_another_length_show_before_the_first_step(tiny: TinyTask) -> None:
    columns = {"input_ids": Column("int32", (-1,)), "labels": Column("int32", (-1,))}
    with MindRecordWriter(tiny.folder / "eval.mindrecord", columns) as writer:
        for length in (17, 17, 15):
            writer.write([{"input_ids": np.ones(length, np.int32), "labels": np.ones(length, np.int32)}])
    done = tiny.run(*DO_EVAL, *COLUMNS, "--eval_dataset_dir", "eval.mindrecord")
    assert done.returncode == 1
    assert "'input_ids' has 15 tokens, not 17" in done.stderr
    assert not (tiny.folder / "output/training.jsonl").exists()
    # What the bad row is not part of can be evaluated.
    weights = ("--run_mode", "eval", "--load_checkpoint", "output", *COLUMNS)
    assert tiny.run("--epochs", "1").returncode == 0
    done = tiny.run(*weights, "--eval_dataset_dir", "eval.mindrecord", "--num_samples", "2")
    assert done.returncode == 0, done.stderr
    assert [(row["tokens"], row["samples"]) for row in evaluations(tiny)] == [(32, 2)]
