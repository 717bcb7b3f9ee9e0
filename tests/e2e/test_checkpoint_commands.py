"""``runformer convert``, ``runformer checkpoint`` and ``convert_weight.py`` as a user runs them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_task import TinyTask

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = ("run_mindformer.py", "convert_weight.py")


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture
def trained(tiny: TinyTask) -> TinyTask:
    done = tiny.run("--epochs", "1")
    assert done.returncode == 0, done.stderr
    return tiny


def test_a_trained_checkpoint_becomes_a_hugging_face_folder(trained: TinyTask) -> None:
    folder = trained.folder
    done = run("-m", "runformer", "convert", "--input", "output", "--output", "hf", "--dtype", "bfloat16", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrote 21 tensors to hf, which compute the same\n"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf")
    assert model.dtype == torch.bfloat16
    again = run("-m", "runformer", "convert", "--input", "output", "--output", "hf", cwd=folder)
    assert again.returncode == 1
    assert again.stderr.splitlines() == ["error: hf exists already", "  hint: delete it or choose another name"]


def test_the_originals_converter_there_and_back(trained: TinyTask) -> None:
    folder, script = trained.folder, REPOSITORY / "convert_weight.py"
    first = run("-m", "runformer", "convert", "--input", "output", "--output", "hf", cwd=folder)
    assert first.returncode == 0, first.stderr
    for arguments in (
        "--model llama --input_path hf --output_path ms.ckpt",
        "--model llama --reversed --input_path ms.ckpt --output_path back --model_dir hf",
        "--model llama --reversed --input_path ms.ckpt --output_path yaml --config config.yaml",
        "--model llama --input_path hf --output_path half.safetensors --dtype fp16",
    ):
        done = run(script, *arguments.split(), cwd=folder)
        assert done.returncode == 0, done.stderr
    before = load_file(folder / "hf/model.safetensors")
    for name in ("back", "yaml"):
        after = load_file(folder / name / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    half = load_file(folder / "half.safetensors")
    assert torch.equal(half["model.norm_out.weight"], before["model.norm.weight"].half())


def test_looking_after_checkpoints(trained: TinyTask) -> None:
    folder = trained.folder

    def checkpoint(*words: str) -> subprocess.CompletedProcess[str]:
        return run("-m", "runformer", "checkpoint", *words, cwd=folder)

    listed = checkpoint("list", "output").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["step", "3", "6", "9", "10"]
    shown = checkpoint("show", "output").stdout
    assert "step 10, epoch 1, samples 20, updates 10, global_batch_size 2, seed 7" in shown
    assert "2 layers of 32, 4 heads on 2, 64 tokens" in shown
    assert "exp_avg: 21 tensors" in shown
    assert "exp_avg_sq.model.norm.weight F32 [32]" in checkpoint("show", "--tensors", "output").stdout
    assert checkpoint("verify", "output").stdout == "".join(f"step {step}: intact\n" for step in (3, 6, 9, 10))
    (file,) = (folder / "output/checkpoint/iteration_00000006").glob("*-opt-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    found = checkpoint("verify", "output")
    assert found.returncode == 1
    assert "opt-0000000-0000001.safetensors: damaged in chunk 0, where exp_avg" in found.stdout
    assert checkpoint("prune", "output", "--keep", "2", "--dry_run").stdout.count("would remove") == 2
    assert checkpoint("prune", "output", "--keep", "2").stdout.count("removed") == 2
    assert [line.split()[0] for line in checkpoint("list", "output").stdout.splitlines()] == ["step", "9", "10"]
    assert "there is no checkpoint here" in checkpoint("list", ".").stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["convert"], "the following arguments are required: --input, --output"),
        (["convert", "--input", "a", "--output", "b", "--shard_size", "0GB"], "'0GB' should be a size such as 5GB"),
        (["convert", "--input", "a", "--output", "b", "--to", "gguf"], "invalid choice: 'gguf'"),
        (["checkpoint"], "the following arguments are required: COMMAND"),
    ],
)
def test_a_wrong_command_line(tmp_path: Path, words: list[str], expected: str) -> None:
    done = run("-m", "runformer", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr


def test_an_input_that_is_not_there(tmp_path: Path) -> None:
    done = run("-m", "runformer", "convert", "--input", "a", "--output", "b", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: a: there is no such file or folder")


def test_the_page_on_checkpoints(trained: TinyTask) -> None:
    page = (REPOSITORY / "docs/checkpoints.md").read_text()
    commands = [
        line
        for block in re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    assert len(commands) == 9
    for command in commands:
        words = [str(REPOSITORY / word) if word in SCRIPTS else word for word in shlex.split(command)[1:]]
        done = run(*words, cwd=trained.folder)
        assert done.returncode == 0, command + done.stderr
    resumed = trained.rows()
    assert [row["step"] for row in resumed] == list(range(1, 21))
