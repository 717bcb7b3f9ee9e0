"""``--dry_run True``: what it says is what the run then does, and nothing else is touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import write_byte_tokenizer
from tiny_task import TinyTask

CONFIG_ERROR = 78


def plan_of(tiny: TinyTask, *arguments: str, output: str = "output") -> dict[str, Any]:
    done = tiny.run("--dry_run", "True", *arguments)
    assert done.returncode == 0, done.stderr
    plan: dict[str, Any] = json.loads((tiny.folder / output / "plan.json").read_text())
    return plan


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_run_does_what_the_plan_says(tiny: TinyTask) -> None:
    arguments = ("--run_mode", "train", "--epochs", "2", "--lr_schedule.type", "CosineWithWarmUpLR")
    before = tree(tiny.folder)
    plan = plan_of(tiny, *arguments)
    after = tree(tiny.folder)
    assert after.keys() - before.keys() == {"output/plan.json"}
    assert {name: after[name] for name in before} == before
    assert tiny.run(*arguments).returncode == 0
    rows = tiny.rows()
    assert plan["run"]["steps"] == len(rows) == 20
    assert plan["step"]["tokens"] == rows[0]["tokens"]
    assert plan["run"]["tokens"] == sum(row["tokens"] for row in rows)
    assert plan["learning_rate"]["values"] == pytest.approx([row["lr"] for row in rows])
    checkpoints = sorted((tiny.folder / "output/checkpoint").iterdir())
    (planned,) = (output for output in plan["writes"] if output["path"].endswith("checkpoint"))
    assert (len(checkpoints), planned["kept"]) == (min(planned["count"], planned["kept"]), 10)
    tensors = sum(path.stat().st_size for path in checkpoints[-1].glob("*.safetensors"))
    assert planned["bytes"] <= tensors <= 1.2 * planned["bytes"]  # and their headers
    for output in plan["writes"]:
        assert Path(output["path"]).exists(), output


def test_a_plan_beside_an_earlier_run(tiny: TinyTask) -> None:
    assert tiny.run("--epochs", "1").returncode == 0
    before = tree(tiny.folder)
    fresh = plan_of(tiny, "--epochs", "2")
    moves = [output["what"] for output in fresh["writes"] if "earlier run" in output["what"]]
    assert len(moves) == 2
    assert all("run_1" in move for move in moves)
    going_on = plan_of(tiny, "--epochs", "2", "--resume_training", "True")
    assert going_on["weights"]["step"] == 10
    assert not [output for output in going_on["writes"] if "earlier run" in output["what"]]
    after = tree(tiny.folder)
    assert {name: after[name] for name in before} == before


def test_a_plan_finds_what_the_run_would_stop_at(tiny: TinyTask) -> None:
    plan = ("--dry_run", "true")
    for arguments, code, words in (
        (("--train_dataset.input_columns", "[input_id]"), 1, "did you mean 'input_ids'?"),
        (("--runner_config.batch_size", "64"), 1, "20 samples, fewer than the 64"),
        (("--model.model_config.num_layer", "2"), CONFIG_ERROR, "did you mean 'num_layers'?"),
    ):
        done = tiny.run(*plan, *arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False)
        assert words in done.stderr
        assert not (tiny.folder / "output").exists()


def test_weights_of_another_model_are_found_in_the_plan(tiny: TinyTask) -> None:
    assert tiny.run("--epochs", "1").returncode == 0
    arguments = ("--load_checkpoint", "output", "--output_dir", "other")
    assert plan_of(tiny, *arguments, output="other")["weights"]["tensors"] == 21
    done = tiny.run("--dry_run", "True", *arguments, "--model.model_config.hidden_size", "64")
    assert done.returncode == 1
    assert "hidden_size" in done.stderr


def test_a_plan_reads_no_tensors_of_a_checkpoint(tiny: TinyTask) -> None:
    """Only headers: a run would find the damage, and a plan of a large model must not take an hour."""
    assert tiny.run("--epochs", "1").returncode == 0
    for tensors in (tiny.folder / "output/checkpoint").glob("*/*.safetensors"):
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.chmod(0o644)
        tensors.write_bytes(data)
    assert plan_of(tiny, "--epochs", "2", "--resume_training", "True")["weights"]["step"] == 10
    assert "no checkpoint is intact" in tiny.run("--epochs", "2", "--resume_training", "True").stderr


def test_everything_missing_is_listed_and_no_error(tiny: TinyTask) -> None:
    (tiny.folder / "data.mindrecord").unlink()
    arguments = ("--load_checkpoint", "/path/to/weights", "--processor.tokenizer.vocab_file", "path/vocab.json")
    plan = plan_of(tiny, *arguments)
    assert set(plan["to_fill_in"]) == {"load_checkpoint", "train_dataset.data_loader.dataset_dir"}
    assert (plan["dataset"], plan["run"], plan["weights"]["path"]) == (None, None, None)
    assert plan["step"]["tokens"] == 2 * 16
    predict = plan_of(tiny, "--run_mode", "predict", *arguments)
    assert set(predict["to_fill_in"]) == {"load_checkpoint", "processor.tokenizer.vocab_file", "input_data"}
    assert predict["prompts"]["longest_prompt"] is None
    assert predict["memory_of_a_device"]["keys and values"] > 0


def test_the_plan_of_an_evaluation(tiny: TinyTask) -> None:
    assert tiny.run("--epochs", "1").returncode == 0
    arguments = ("--run_mode", "eval", "--load_checkpoint", "output", "--output_dir", "figures")
    plan = plan_of(tiny, *arguments, output="figures")
    assert set(plan["to_fill_in"]) == {"eval_dataset.data_loader.dataset_dir"}
    plan = plan_of(tiny, *arguments, "--eval_dataset_dir", "data.mindrecord", output="figures")
    assert plan["evaluation_dataset"]["rows"] == 20
    assert plan["memory_of_a_device"]["weights"] == 4 * plan["model"]["parameters"]
    assert [Path(output["path"]).name for output in plan["writes"]] == ["log", "evaluation.jsonl"]


def test_a_folder_may_describe_the_model_before_its_weights_are_there(tiny: TinyTask) -> None:
    config = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    (tiny.folder / "model").mkdir()
    (tiny.folder / "model/config.json").write_text(json.dumps(config))
    arguments = ("--pretrained_model_dir", "model", "--model.model_config.type", "None")
    plan = plan_of(tiny, *arguments)
    assert "there are no weights in it" in plan["to_fill_in"]["pretrained_model_dir"]
    assert (plan["weights"], plan["model"]["layers"], plan["run"]["steps"]) == (None, 2, 20)
    (tiny.folder / "model/pytorch_model.bin").write_bytes(b"")
    done = tiny.run("--dry_run", "True", *arguments)
    assert done.returncode == 1
    assert "pytorch_model.bin is not loaded" in done.stderr


def test_a_predict_plan_counts_the_prompts_tokens(tiny: TinyTask) -> None:
    vocabulary = ("--model.model_config.vocab_size", "260")
    assert tiny.run("--epochs", "1", *vocabulary).returncode == 0
    write_byte_tokenizer(tiny.folder / "tok")
    arguments = ["--run_mode", "predict", "--load_checkpoint", "output", "--predict_data", "abc", "hello"]
    arguments += ["--processor.tokenizer.tokenizer_file", "tok/tokenizer.json", "--predict_batch_size", "2"]
    prompts = plan_of(tiny, *arguments, *vocabulary)["prompts"]
    assert (prompts["prompts"], prompts["rows_in_batch"], prompts["longest_prompt"]) == (2, 2, len("hello"))
    assert prompts["longest_text"] == 16


def test_a_tokenizer_larger_than_the_model_is_found_before_training(tiny: TinyTask) -> None:
    write_byte_tokenizer(tiny.folder / "tok")
    done = tiny.run("--processor.tokenizer.tokenizer_file", "tok/tokenizer.json")
    assert done.returncode == 1
    assert "model.model_config.vocab_size is too small" in done.stderr
    assert not (tiny.folder / "output/training.jsonl").exists()


def test_the_plan_on_the_console(tiny: TinyTask) -> None:
    done = tiny.run("--dry_run", "True", "--epochs", "3", "--lr_schedule.warmup_ratio", "0.5")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 110 + len(str(tiny.folder))
    assert "run         30 steps: 10 an epoch × 3; 960 tokens" in lines
    assert "step        32 tokens: 2 rows (2 a batch × 1 batch × 1 copy); " in done.stdout
    plot = [line for line in lines if "▕" in line]
    assert len(plot) == 6
    assert plot[0].count("█") + plot[0].count("▇") < plot[-1].count("█")
    assert lines[-1].endswith("plan.json; nothing was started")


def test_a_reader_that_leaves_is_no_error(tiny: TinyTask) -> None:
    command = " ".join(tiny.command("--dry_run", "True"))
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -c 0"],
        cwd=tiny.folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (141, "")
    assert (tiny.folder / "output/plan.json").is_file()


def test_an_output_directory_that_cannot_be_made(tiny: TinyTask) -> None:
    (tiny.folder / "taken").write_text("")
    done = tiny.run("--dry_run", "True", "--output_dir", "taken")
    assert done.returncode == 1
    assert "taken/plan.json: cannot be written" in done.stderr
    assert sys.getsizeof(done.stderr) < 2000


def test_a_plan_of_many_devices_takes_no_file_for_each(tiny: TinyTask) -> None:
    """16,384 of them, as ``python -m runformer plan`` draws them: who has which layers and heads, and what is sent."""
    recipe = tiny.repository / "research/qwen2_5/finetune_qwen2_5_72b_8k.yaml"
    arguments = ["--config", str(recipe), "--run_mode", "finetune", "--parallel_config.data_parallel", "256"]
    before = tree(tiny.folder)
    done = subprocess.run(
        [sys.executable, "-m", "runformer", "plan", *arguments],
        cwd=tiny.folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tree(tiny.folder).keys() - before.keys() == {"output/plan.json"}
    assert "16384 devices: data 256 × tensor 8 × context 1 × pipeline 8" in done.stdout
    assert "stage 8  ranks 14336 to 16383: layers 70 to 79 and the output; " in done.stdout
    assert "a layer  8 × 8 query heads, 8 × 1 key-value heads" in done.stdout
    assert "waiting  18% of a step" in done.stdout
    plan = json.loads((tiny.folder / "output/plan.json").read_text())
    assert sum(plan["memory_of_a_device"].values()) == max(
        sum(stage["memory"].values()) for stage in plan["layout"]["stages"]
    )
