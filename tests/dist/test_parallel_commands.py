"""Split models by the real command: the curve of one process, one set of files, and a resume in another layout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import write_byte_tokenizer
from curves import assert_same_curve, assert_same_weights, rows
from launching import REPOSITORY, launch, wait_until
from machines import Machine, required_machines
from tiny_task import TinyTask

COMMAND = ("run_mindformer.py", "--config", "config.yaml", "--use_parallel", "True")
# 14 query heads on 2, as in Qwen2.5-0.5B, and its tied embedding.
QWEN = (
    *("--model.model_config.hidden_size", "56", "--model.model_config.num_heads", "14"),
    *("--model.model_config.n_kv_heads", "2", "--model.model_config.tie_word_embeddings", "True"),
)


WEIGHTS_SHARED = (
    *("--parallel.enable_parallel_optimizer", "True"),
    *("--parallel.parallel_optimizer_config.optimizer_level", "level3"),
)
ZERO_BUBBLE = ("--parallel.pipeline_config.pipeline_scheduler", "zero_bubble_v")

FOUR = (*QWEN, "--model.model_config.num_layers", "4")

# Batches of 3: the last of 20 rows is not full, and there are not as many as stages divide.
EVALUATING = (
    *("--do_eval", "True", "--eval_dataset_dir", "data.mindrecord", "--eval_step_interval", "2"),
    *("--eval_dataset.input_columns", "[input_ids, labels]", "--eval_dataset.batch_size", "3"),
)


def evaluations(tiny: TinyTask, output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tiny.folder / output / "evaluation.jsonl").read_text().splitlines()]


def sizes(**layout: object) -> list[str]:
    return [word for name, value in layout.items() for word in (f"--parallel_config.{name}", str(value))]


def chosen(cases: Iterable[str], *telling: str) -> list[object]:
    """All cases, of which only the telling ones run with all tests."""
    return [case if case in telling else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def train(tiny: TinyTask, output: str, ranks: int, *arguments: str) -> None:
    done = launch(tiny.folder, ranks, *COMMAND, "--output_dir", output, *arguments)
    assert done.exit_code == 0, done.err


def alone(tiny: TinyTask, output: str, *arguments: str) -> None:
    done = tiny.run("--output_dir", output, *arguments)
    assert done.returncode == 0, done.stderr


CASES: dict[str, tuple[int, list[str], Sequence[str]]] = {
    # name: ranks, the layout with its rows a micro-batch, arguments of both runs
    "layers shared and cut": (
        4,
        [*sizes(model_parallel=2, pipeline_stage=2, micro_batch_num=4, use_seq_parallel=True), "--batch_size", "1"],
        QWEN,
    ),
    "sequences shared, a last batch that is not full": (
        2,
        [*sizes(context_parallel=2), "--batch_size", "4"],
        ("--train_dataset.drop_remainder", "False", "--train_dataset.data_loader.num_samples", "11"),
    ),
    "a pipeline, a last batch that is not full": (
        2,
        [*sizes(pipeline_stage=2, micro_batch_num=2), "--batch_size", "2"],
        ("--train_dataset.drop_remainder", "False", "--train_dataset.data_loader.num_samples", "11"),
    ),
    "optimizer shared out": (
        2,
        [*sizes(data_parallel=2), "--batch_size", "2", "--parallel.enable_parallel_optimizer", "True"],
        (),
    ),
    "weights shared out": (2, [*sizes(data_parallel=2), "--batch_size", "2", *WEIGHTS_SHARED], QWEN),
    "zero-bubble": (2, [*sizes(pipeline_stage=2, micro_batch_num=4), "--batch_size", "1", *ZERO_BUBBLE], FOUR),
    "a layout that is searched for": (
        2,
        ["--parallel.parallel_mode", "2", "--batch_size", "1", "--gradient_accumulation_steps", "4"],
        QWEN,
    ),
}


@pytest.mark.parametrize("case", chosen(CASES, "layers shared and cut"))
def test_a_split_model_learns_what_one_process_does(tiny: TinyTask, case: str) -> None:
    ranks, layout, arguments = CASES[case]
    alone(tiny, "one", "--batch_size", "4", *arguments, *EVALUATING)
    train(tiny, "many", ranks, *layout, *arguments, *EVALUATING)
    assert_same_curve(tiny.folder / "many", tiny.folder / "one")
    assert_same_weights(tiny.folder / "many", tiny.folder / "one")
    lines = (tiny.folder / "many/training.jsonl").read_text().splitlines()
    assert len(lines) == len(rows(tiny.folder / "one")), "a row a step, whoever else computes"
    for ours, theirs in zip(evaluations(tiny, "many"), evaluations(tiny, "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert (ours["step"], ours["tokens"], ours["samples"]) == (theirs["step"], theirs["tokens"], theirs["samples"])


NARROW = ("--parallel.gradient_reduce_dtype", "bfloat16")


@pytest.mark.parametrize(
    "layout",
    [
        [*sizes(data_parallel=2), "--batch_size", "2"],
        pytest.param([*sizes(data_parallel=2), "--batch_size", "2", *WEIGHTS_SHARED], marks=pytest.mark.slow),
    ],
    ids=["copies", "weights shared out"],
)
def test_gradients_may_be_summed_in_bfloat16(tiny: TinyTask, layout: list[str]) -> None:
    """The first loss is the same, then curves part, by what rounding gradients to 8 bits does."""
    train(tiny, "exact", 2, *layout)
    train(tiny, "narrow", 2, *layout, *NARROW)
    exact, narrow = (
        [(row["loss"], row["grad_norm"]) for row in rows(tiny.folder / name).values()] for name in ("exact", "narrow")
    )
    assert narrow[0][0] == exact[0][0]
    assert narrow[0][1] != exact[0][1]
    for ours, theirs in zip(narrow, exact, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2)


def test_a_run_goes_on_in_any_layout(tiny: TinyTask) -> None:
    """Begun in one layout, taken up after every few steps in another: the curve of one process that never stopped."""
    alone(tiny, "one", "--batch_size", "4", *QWEN)
    layouts = [
        (2, [*sizes(pipeline_stage=2, micro_batch_num=2), "--batch_size", "2"]),
        (2, [*sizes(model_parallel=2), "--batch_size", "4"]),
        (2, [*sizes(data_parallel=2), "--batch_size", "2", *WEIGHTS_SHARED]),
        (2, [*sizes(data_parallel=2), "--batch_size", "2", "--parallel.enable_parallel_optimizer", "True"]),
        (1, ["--batch_size", "4", "--use_parallel", "False"]),
    ]
    for number, (ranks, layout) in enumerate(layouts):
        train(tiny, "many", ranks, *layout, *QWEN, *(["--resume_training", "True"] if number else []))
        for checkpoint in sorted((tiny.folder / "many/checkpoint").iterdir())[number + 1 :]:
            if number < len(layouts) - 1:
                shutil.rmtree(checkpoint)  # as if the run had died early
    assert_same_curve(tiny.folder / "many", tiny.folder / "one")
    assert_same_weights(tiny.folder / "many", tiny.folder / "one")


@pytest.fixture
def pair() -> Iterator[list[Machine]]:
    with required_machines(2) as hosts:
        yield hosts


@pytest.mark.slow
def test_the_published_plan_on_two_machines_is_the_single_process(tiny: TinyTask, pair: list[Machine]) -> None:
    """Two machines of eight workers: data 2 × model 4 × pipeline 2, 14 query heads, by the published command."""
    alone(tiny, "one", "--batch_size", "8", *QWEN)
    layout = sizes(data_parallel=2, model_parallel=4, pipeline_stage=2, micro_batch_num=4)
    order = " ".join(
        [*COMMAND, "--run_mode", "train", "--output_dir", "many", "--batch_size", "1", *layout, *QWEN]
    )
    script = ["bash", str(REPOSITORY / "scripts/msrun_launcher.sh"), order, "16", "8", "10.77.0.1", "8118"]
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for rank, host in enumerate(pair):
        started = host.start([*script, str(rank), f"logs_{rank}", "False", "300"], tiny.folder, path)
        said = started.communicate(timeout=60)
        assert started.returncode == 0, said
    status = tiny.folder / "logs_0/status.json"
    wait_until(lambda: json.loads(status.read_text())["exit_code"] is not None, "the end", seconds=250)
    assert json.loads(status.read_text())["exit_code"] == 0
    assert_same_curve(tiny.folder / "many", tiny.folder / "one")


def test_a_plan_that_does_not_fit_is_refused_before_anything_starts(tiny: TinyTask) -> None:
    """By the ranks themselves, before they meet: with the numbers, and plans that fit."""
    done = launch(tiny.folder, 2, *COMMAND, *sizes(model_parallel=4))
    assert done.exit_code == 78
    said = (tiny.folder / "logs/worker_0.log").read_text()
    assert "model_parallel 4" in said
    assert "the nearest plans that fit: " in said
    assert not (tiny.folder / "output/training.jsonl").exists()


def test_sequences_that_cannot_be_shared_out_are_refused(tiny: TinyTask) -> None:
    run = subprocess.run(
        tiny.command("--dry_run", "True", "--use_parallel", "True", *sizes(model_parallel=3, use_seq_parallel=True)),
        cwd=tiny.folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 78
    assert "use_seq_parallel shares positions out over 3 devices, which do not divide seq_length 16" in run.stderr


PREDICTING = {
    "layers shared": (2, sizes(model_parallel=2)),
    "layers cut": (2, sizes(pipeline_stage=2)),
    "layers cut for a V": (2, [*sizes(pipeline_stage=2), *ZERO_BUBBLE]),
    "prompts shared out": (2, sizes(data_parallel=2)),
    "all of these, heads that do not divide": (8, sizes(data_parallel=2, model_parallel=2, pipeline_stage=2)),
}


@pytest.mark.parametrize("case", chosen(PREDICTING, "all of these, heads that do not divide"))
def test_answers_are_those_of_one_process(tiny: TinyTask, case: str) -> None:
    write_byte_tokenizer(tiny.folder / "tok")
    model = [*FOUR, "--model.model_config.vocab_size", "260"]
    alone(tiny, "trained", "--batch_size", "4", "--epochs", "1", *model)
    (tiny.folder / "prompts.txt").write_text("abc\nhello\nx\nyes or\n")
    arguments = ["--run_mode", "predict", "--load_checkpoint", "trained", "--predict_data", "prompts.txt", *model]
    arguments += ["--processor.tokenizer.tokenizer_file", "tok/tokenizer.json", "--predict_batch_size", "2"]
    # Drawn at random: a text hangs on its prompt's number, not on who writes it.
    arguments += ["--model.model_config.do_sample", "True", "--model.model_config.top_k", "0"]
    alone(tiny, "one", *arguments, "--save_file", "one.txt")
    ranks, layout = PREDICTING[case]
    train(tiny, "many", ranks, *arguments, *layout, "--save_file", "many.txt")
    texts = [(tiny.folder / name).read_text() for name in ("one.txt", "many.txt")]
    assert texts[0] == texts[1]
    assert len(texts[0]) > 40
