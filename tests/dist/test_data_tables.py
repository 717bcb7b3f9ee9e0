"""Tables of other people, straight into training, by the real command: one process, several ranks, and resumed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from byte_tokenizer import write_byte_tokenizer
from curves import assert_same_curve, assert_same_weights, rows
from launching import launch
from tiny_task import TinyTask

COMMAND = ("run_mindformer.py", "--config", "config.yaml")
LENGTH = 16  # of the model
SAVED = 9  # steps, where a run is resumed: in the second epoch of some, but not behind the end of any


def write_chats(folder: Path) -> dict[str, Any]:
    draw = random.Random(0)
    chats = [
        [
            {"role": "user", "content": "q" * draw.randint(1, 3)},
            {"role": "assistant", "content": "a" * draw.randint(1, 10)},
        ]
        for _ in range(60)
    ]
    (folder / "chats.json").write_text(json.dumps([{"messages": chat, "id": number} for number, chat in enumerate(chats)]))
    write_byte_tokenizer(folder / "tokenizer")
    handler = [
        {"type": "take", "n": 20},
        {"type": "MessagesDataHandler", "seq_length": LENGTH, "tokenizer": "tokenizer"},
        {"type": "PackingHandler", "seq_length": LENGTH},
    ]
    return {"type": "HFDataLoader", "path": "json", "data_files": "chats.json", "split": "train", "handler": handler}


def write_tokens(folder: Path) -> dict[str, Any]:
    draw = np.random.default_rng(1)
    tokens = [draw.integers(1, 64, LENGTH + 1).tolist() for _ in range(20)]
    labels = [[-100 if number % 3 else token for number, token in enumerate(row)] for row in tokens]
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"input_ids": tokens, "labels": labels}).to_parquet(folder / "tokens.parquet")
    return {"type": "CommonDataLoader", "path": "parquet", "data_files": "tokens.parquet", "shuffle": True}


def write_stream(folder: Path) -> dict[str, Any]:
    return write_tokens(folder) | {"type": "HFDataLoader", "streaming": True, "shuffle": False}


def write_mixture(folder: Path) -> dict[str, Any]:
    binary = {"type": "MindDataset", "dataset_dir": "data.mindrecord"}
    parts = [binary, {**write_chats(folder), "shuffle": None}]
    return {"type": "MultiSourceDataLoader", "sub_data_loader": parts, "dataset_ratios": [0.7, 0.3], "samples_count": 16}


CASES = {"chats": write_chats, "tokens": write_tokens, "stream": write_stream, "mixture": write_mixture}


def with_data(tiny: TinyTask, loader: dict[str, Any]) -> None:
    path = tiny.folder / "config.yaml"
    task = yaml.safe_load(path.read_text())
    task["train_dataset"]["data_loader"] = loader
    task["model"]["model_config"]["vocab_size"] = 300
    path.write_text(yaml.safe_dump(task, sort_keys=False))


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.mark.parametrize(
    "case", [case if case in ("chats", "mixture") else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_ranks_read_a_table_as_one_process_does(tiny: TinyTask, case: str) -> None:
    with_data(tiny, CASES[case](tiny.folder))
    together = ("--use_parallel", "True", "--parallel_config.data_parallel", "2", "--batch_size", "2")
    many = launch(tiny.folder, 2, *COMMAND, "--output_dir", "many", *together)
    assert many.exit_code == 0, many.err
    one = tiny.run("--output_dir", "one", "--batch_size", "4")
    assert one.returncode == 0, one.stderr
    assert "Generating" not in one.stderr  # the library's progress bars
    assert_same_curve(tiny.folder / "many", tiny.folder / "one")
    assert_same_weights(tiny.folder / "many", tiny.folder / "one")


@pytest.mark.parametrize("case", [pytest.param("chats", marks=pytest.mark.slow), "stream", "mixture"])
def test_a_run_on_a_table_resumes_where_it_stood(tiny: TinyTask, case: str) -> None:
    with_data(tiny, CASES[case](tiny.folder))
    whole = tiny.run("--output_dir", "whole")
    assert whole.returncode == 0, whole.stderr
    for later in list((tiny.folder / "whole" / "checkpoint").iterdir()):
        if later.name > f"iteration_{SAVED:08d}":
            shutil.rmtree(later)
    resumed = tiny.run("--output_dir", "resumed", "--load_checkpoint", "whole/checkpoint", "--resume_training", "True")
    assert resumed.returncode == 0, resumed.stderr
    expected, found = rows(tiny.folder / "whole"), rows(tiny.folder / "resumed")
    assert list(found) == [step for step in expected if step > SAVED]
    assert found
    assert all(found[step]["loss"] == pytest.approx(expected[step]["loss"], rel=1e-6) for step in found)


def test_a_dry_run_shows_the_table(tiny: TinyTask) -> None:
    with_data(tiny, write_tokens(tiny.folder))
    planned = tiny.run("--dry_run", "True")
    assert planned.returncode == 0, planned.stderr
    assert "tokens.parquet" in planned.stdout
    assert "20" in planned.stdout


def test_a_broken_file_is_one_message(tiny: TinyTask) -> None:
    with_data(tiny, write_chats(tiny.folder))
    (tiny.folder / "chats.json").write_text('[{"messages": []},\n{"messages" []}]')
    failed = tiny.run()
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert "chats.json, line 2: not JSON at column 13: Expecting ':' delimiter" in failed.stderr
