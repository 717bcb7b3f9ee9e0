"""The demo's records: their form, their length in tokens, and that they say what the tool really does."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from preparing import prepared
from smollm2_files import smollm2_folder

from runformer.checkpoint.layout import directory_name
from runformer.config import ScheduleOptions, Task, load_task
from runformer.config.flags import make_parser
from runformer.errors import ConfigError, UsageError
from runformer.observe import StepRow
from runformer.train.schedule import make_schedule

Records = dict[str, str]
"""Answers by question."""


def read(file: Path) -> Records:
    records = json.loads(file.read_text(encoding="utf-8"))
    assert all(record.get("input", "") == "" for record in records)
    by_question = {record["instruction"]: record["output"] for record in records}
    assert len(by_question) == len(records), "a question is asked twice"
    return by_question


@pytest.fixture(scope="module")
def taught(repository: Path) -> Records:
    return read(repository / "demo" / "instructions.json")


@pytest.fixture(scope="module")
def held_out(repository: Path) -> Records:
    return read(repository / "demo" / "held_out.json")


@pytest.fixture(scope="module")
def demo(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", repository / "demo" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def task(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """The demo's recipe, with a model folder and a dataset that are there."""
    monkeypatch.chdir(repository)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "train.mindrecord").touch()
    overrides = ["--pretrained_model_dir", str(tmp_path), "--train_dataset_dir", str(tmp_path / "train.mindrecord")]
    return load_task(["--config", "demo/smollm2_135m.yaml", *overrides])


def test_every_fact_is_asked_three_times_and_held_out_questions_are_new(taught: Records, held_out: Records) -> None:
    facts = Counter(taught.values())

    assert 190 <= len(taught) <= 210
    assert set(facts.values()) == {3}
    assert 20 <= len(held_out) <= 25
    assert set(held_out.values()) <= facts.keys()
    assert not held_out.keys() & taught.keys()


def test_records_are_short(taught: Records, held_out: Records) -> None:
    # Where the tokenizer is not here, a bound on words keeps a record inside its row: see the next test.
    for question, answer in (taught | held_out).items():
        assert len(re.findall(r"\w+|[^\w\s]", question)) <= 22, question
        assert len(re.findall(r"\w+|[^\w\s]", answer)) <= 30, answer


def test_records_fit_their_row_with_the_real_tokenizer(repository: Path, demo: ModuleType, tmp_path: Path) -> None:
    for name in ("instructions.json", "held_out.json"):
        target = tmp_path / f"{name}.mindrecord"
        report = prepared(repository / "demo" / name, target, smollm2_folder(), demo.SEQUENCE_LENGTH)
        assert (report.counts.cut, report.counts.left_out) == (0, 0), name


def test_the_recipe_and_the_demo_agree(demo: ModuleType, task: Task, held_out: Records) -> None:
    assert task.model.sequence_length is None  # training takes it from the rows, prediction may go on longer
    assert task.output_dir == Path.cwd() / demo.OUTPUT
    assert set(demo.QUESTIONS) <= held_out.keys()
    assert task.train is not None
    assert task.train.data.columns == ("input_ids", "labels")


def test_flags_in_the_records_exist(taught: Records) -> None:
    flags = set(re.findall(r"--[a-z_]+", make_parser().format_help()))
    named = {flag for text in [*taught, *taught.values()] for flag in re.findall(r"--[a-z_]+\b(?!\.)", text)}

    assert len(named) > 20
    assert named <= flags


def test_dotted_keys_in_the_records_exist(taught: Records, task: Task) -> None:
    dotted = {key for answer in taught.values() for key in re.findall(r"--([a-z_]+\.[a-z_.]+) \d", answer)}

    assert dotted == {"runner_config.epochs"}
    assert task.train is not None
    assert task.train.epochs >= 1


def test_names_and_codes_in_the_records_are_those_of_the_code(taught: Records) -> None:
    def answer(question: str) -> str:
        return taught[question]

    assert f"status is {UsageError.exit_code}." in answer("What is the status of a wrong command line?")
    assert f"code {ConfigError.exit_code}." in answer("What is the exit code of a wrong configuration?")
    assert f"/{directory_name(120)}." in answer("Where is the checkpoint of step 120?")
    keys = re.search(r"with (.*)\.$", answer("What is in training.jsonl?"))
    assert keys is not None
    assert set(re.split(r", | and ", keys[1])) <= {field.name for field in dataclasses.fields(StepRow)}


def test_the_warm_up_begins_where_the_records_say(taught: Records) -> None:
    kind = "CosineWithWarmUpLR"
    assert any(answer.startswith(f"{kind} warms up linearly") for answer in taught.values())

    rate = make_schedule(
        ScheduleOptions(kind, {"learning_rate": 1.0, "warmup_ratio": 0.5}), steps_per_epoch=8, epochs=1
    )

    assert [rate(step) for step in range(4)] == [0.0, 0.25, 0.5, 0.75]
    assert "warmup_lr_init, which is 0" in taught["What is the learning rate of the first warm-up step?"]


def test_rows_are_one_token_longer_and_minus_100_is_ignored(taught: Records, task: Task) -> None:
    assert task.train is not None
    assert f"A label of {task.train.data.ignore_token_id} is ignored in the loss." in taught.values()
    assert any(answer.startswith("A MindRecord row holds one token more") for answer in taught.values())
    assert not task.train.data.already_shifted


def test_commands_are_printed_as_a_shell_takes_them(demo: ModuleType) -> None:
    words = [
        "python",
        "run_mindformer.py",
        "--predict_data",
        "What's new?",
        "x" * 90,
        *(f"--flag_{n}" for n in range(20)),
    ]
    text = demo.shell_lines(words)
    heard = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {text}"], check=True, capture_output=True, text=True, timeout=60
    )
    assert heard.stdout.splitlines() == words
    assert len(text.splitlines()) > 3
    assert all(len(line) <= 78 or "x" * 90 in line for line in text.splitlines())
