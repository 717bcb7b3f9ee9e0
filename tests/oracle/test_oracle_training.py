"""The original's own YAML, weights, data and command, through our command, give its numbers at every step.

Tolerances are those that the cases state: loss 1e-5, gradient norm 5e-5, learning rate 1e-6 (relative); final
weights 1e-5 absolute, 5e-4 in the Qwen cases, where gradients near 0 let Adam amplify rounding.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from runformer.models.names import to_mindformers

TOLERANCES = {"loss": 1e-5, "grad_norm": 5e-5, "lr": 1e-6}
CASES = {"llama_pretrain": 1e-5, "qwen2_finetune_mask": 5e-4, "llama_lora": 1e-5}


def copy_case(oracle_dir: Path, case: str, folder: Path) -> Path:
    """A writable copy of a case: runs write beside its files."""
    return Path(shutil.copytree(oracle_dir / case, folder / case))


def run_command(repository: Path, folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a ``python run_mindformer.py …`` line as a user would, from inside the case's folder."""
    words = shlex.split(command)
    assert words[:2] == ["python", "run_mindformer.py"]
    line = [sys.executable, str(repository / "run_mindformer.py"), *words[2:]]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=200, check=False)


def rows(path: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in map(json.loads, path.read_text().splitlines())}


def assert_rows_match(actual: dict[int, dict[str, Any]], expected: dict[int, dict[str, Any]]) -> None:
    for step, row in actual.items():
        for key, tolerance in TOLERANCES.items():
            reference = expected[step][key]
            if reference is None:
                assert row[key] is None
            else:
                assert abs(row[key] - reference) <= tolerance * abs(reference), (step, key)


def assert_weights_match(checkpoint: Path, final: Path, tolerance: float) -> None:
    (file,) = checkpoint.glob("*-model-*.safetensors")
    actual = {to_mindformers(name): tensor for name, tensor in load_file(file).items()}
    expected = load_file(final)
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert (actual[name] - tensor).abs().max() <= tolerance, name


@pytest.mark.parametrize("case", CASES)
def test_a_run_has_the_originals_numbers(case: str, repository: Path, oracle_dir: Path, tmp_path: Path) -> None:
    folder = copy_case(oracle_dir, case, tmp_path)
    done = run_command(repository, folder, (folder / "command.txt").read_text().strip())
    assert done.returncode == 0, done.stderr
    expected = rows(folder / "expected.jsonl")
    actual = rows(folder / "output" / "training.jsonl")
    assert list(actual) == list(expected)
    assert_rows_match(actual, expected)
    assert_weights_match(folder / "output/checkpoint/iteration_00000032", folder / "final.safetensors", CASES[case])


def test_hugging_face_weights_give_the_same_numbers(repository: Path, oracle_dir: Path, tmp_path: Path) -> None:
    folder = copy_case(oracle_dir, "llama_pretrain", tmp_path)
    command = (
        (folder / "command.txt").read_text().strip().replace("--load_checkpoint init", "--load_checkpoint init_hf")
    )
    done = run_command(repository, folder, command)
    assert done.returncode == 0, done.stderr
    assert_rows_match(rows(folder / "output" / "training.jsonl"), rows(folder / "expected.jsonl"))


@pytest.mark.parametrize(
    "source", ["checkpoint/rank_0/tiny_rank_0-1_16.safetensors", "checkpoint", "checkpoint/rank_0"]
)
def test_a_run_goes_on_from_the_originals_checkpoint(
    source: str, repository: Path, oracle_dir: Path, tmp_path: Path
) -> None:
    folder = copy_case(oracle_dir, "llama_resume", tmp_path)
    command = (folder / "command.txt").read_text().splitlines()[-1]
    command = command.replace("ckpt/tiny_rank_0-1_16.safetensors", source)
    done = run_command(repository, folder, command)
    assert done.returncode == 0, done.stderr
    actual = rows(folder / "output" / "training.jsonl")
    assert list(actual) == list(range(17, 33))
    assert_rows_match(actual, rows(folder / "expected.jsonl"))
    assert_weights_match(folder / "output/checkpoint/iteration_00000032", folder / "final.safetensors", 1e-5)


def test_accumulation_does_not_change_the_curve(repository: Path, oracle_dir: Path, tmp_path: Path) -> None:
    """Rows are padded unevenly, so a mean of the micro-batches' means would show."""
    folder = copy_case(oracle_dir, "llama_pretrain", tmp_path)
    command = (folder / "command.txt").read_text().strip() + " --batch_size 1 --gradient_accumulation_steps 4"
    done = run_command(repository, folder, command)
    assert done.returncode == 0, done.stderr
    assert_rows_match(rows(folder / "output" / "training.jsonl"), rows(folder / "expected.jsonl"))
