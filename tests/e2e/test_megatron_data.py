"""Training on Megatron's indexed datasets, by the command: alone, resumed, evaluated, planned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_task import TinyTask, make_megatron_task

SMALL = {
    "seq_length": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "vocab_size": 64,
    "pad_token_id": 0,
}
CURVE = ("step", "loss", "grad_norm", "lr", "tokens")


@pytest.fixture
def megatron(repository: Path, tmp_path: Path) -> TinyTask:
    return make_megatron_task(repository, tmp_path)


def curve(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(row[key] for key in CURVE) for row in rows]


def test_a_run_has_as_many_steps_as_sizes_says_and_resumes_exactly(megatron: TinyTask) -> None:
    whole = megatron.run("--output_dir", "whole")
    assert whole.returncode == 0, whole.stderr
    rows = megatron.rows("whole")
    assert len(rows) == 2 * (20 // 2)
    assert {row["tokens"] for row in rows} == {2 * 16}
    assert rows[-1]["loss"] < rows[0]["loss"]
    shutil.copytree(megatron.folder / "whole", megatron.folder / "output")
    for folder in sorted((megatron.folder / "output/checkpoint").iterdir())[1:]:
        shutil.rmtree(folder)  # as if the run had died after its first save, in the middle of an epoch
    for name in ("one", "two"):
        shutil.rmtree(megatron.folder / name)  # and its index files were lost
    resumed = megatron.run("--resume_training", "True")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 3" in resumed.stdout
    assert curve(megatron.rows()) == curve(rows)


def test_the_validation_part_is_evaluated(megatron: TinyTask) -> None:
    text = (megatron.folder / "config.yaml").read_text()
    assert "train_dataset: &train_dataset" in text
    (megatron.folder / "config.yaml").write_text(f"{text}\neval_dataset: *train_dataset\n")
    trained = megatron.run("--epochs", "1", "--do_eval", "True", "--eval_epoch_interval", "1")
    assert trained.returncode == 0, trained.stderr
    assert "perplexity" in trained.stdout.lower()
    parts = {path.name.split("-")[2] for path in megatron.folder.glob("*/cache/GPTDataset_indices/*")}
    assert parts == {"train", "valid"}


def test_a_plan_tells_of_the_dataset(megatron: TinyTask) -> None:
    planned = megatron.run("--dry_run", "True")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads((megatron.folder / "output/plan.json").read_text())
    assert plan["dataset"]["rows"] == 20
    assert [Path(path).name for path in plan["dataset"]["files"]] == ["one.bin", "one.idx", "two.bin", "two.idx"]


def test_a_damaged_dataset_is_told_without_a_traceback(megatron: TinyTask) -> None:
    path = megatron.folder / "two.bin"
    path.write_bytes(path.read_bytes()[:-2])
    failed = megatron.run()
    assert failed.returncode == 1
    assert "two.bin has" in failed.stderr
    assert "cut off or damaged" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_published_recipe_trains_a_small_model(megatron: TinyTask, shared_dir: Path) -> None:
    """With its keys of the loader as they are, but for the path, the lengths and the number of samples."""
    shutil.copy(shared_dir / "compat/configs/qwen3/pretrain_qwen3_32b_4k.yaml", megatron.folder / "config.yaml")
    model = [word for key, value in SMALL.items() for word in (f"--model.model_config.{key}", str(value))]
    loader = "--train_dataset.data_loader"
    data = [f"{loader}.config.data_path.1", "two", f"{loader}.config.seq_length", "32", f"{loader}.sizes", "[6, 0, 0]"]
    trained = megatron.run("--use_parallel", "False", "--epochs", "1", *model, *data)
    assert trained.returncode == 0, trained.stderr
    rows = megatron.rows()
    assert len(rows) == 6
    assert {row["tokens"] for row in rows} == {32}
