"""The commands on an NVIDIA GPU: the same numbers as on a CPU, through the launcher, too. Started with ``-m gpu``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_task import TinyTask
from torch import Tensor, nn

from runformer.config.task import ModelOptions, Precision
from runformer.models.build import build_model, initialise
from runformer.parallel.compose import undivided
from runformer.parallel.group import Group, copy_over_ranks
from runformer.predict.engine import Generator
from runformer.predict.settings import LengthLimit, Settings
from runformer.predict.weights import prepare_for_generation

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

GPU = ("--device_target", "GPU")


def losses(tiny: TinyTask, output: str = "output") -> list[float]:
    return [row["loss"] for row in tiny.rows(output)]


def msrun(tiny: TinyTask, workers: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runformer.launch", "--worker_num", str(workers), "--join", "True"]
    command += ["--local_worker_num", str(workers), "--master_port", "8131", "--log_dir", "logs"]
    return subprocess.run(
        [*command, str(tiny.repository / "run_mindformer.py"), "--config", "config.yaml", *GPU, *arguments],
        cwd=tiny.folder,
        env=os.environ | {"PYTHONPATH": str(tiny.repository)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture
def on_cpu(tiny: TinyTask) -> list[float]:
    done = tiny.run("--output_dir", "cpu")
    assert done.returncode == 0, done.stderr
    return losses(tiny, "cpu")


def test_training_on_a_gpu_gives_the_curve_of_a_cpu(tiny: TinyTask, on_cpu: list[float]) -> None:
    done = tiny.run(*GPU)
    assert done.returncode == 0, done.stderr
    assert losses(tiny) == pytest.approx(on_cpu, rel=2e-6)
    assert tiny.rows()[-1]["peak_memory_bytes"] > 0


def test_compiled_layers_give_that_curve(tiny: TinyTask, on_cpu: list[float]) -> None:
    done = tiny.run(*GPU, "--mode", "0")
    assert done.returncode == 0, done.stderr
    assert "running eagerly" not in done.stdout + done.stderr
    assert losses(tiny) == pytest.approx(on_cpu, rel=1e-5)


@pytest.mark.parametrize("mode", ["1", "0"])
@pytest.mark.parametrize("hidden_size", ["32", "64"])  # heads of 8 have a mask, heads of 16 are computed block by block
def test_documents_of_a_row_are_kept_apart_as_on_a_cpu(tiny: TinyTask, mode: str, hidden_size: str) -> None:
    rows = ("--train_dataset.eod_reset", "True", "--train_dataset.eod_token_id", "5")
    model = ("--model.model_config.hidden_size", hidden_size)
    for done in (tiny.run(*rows, *model, "--output_dir", "cpu"), tiny.run(*GPU, *rows, *model, "--mode", mode)):
        assert done.returncode == 0, done.stderr
    assert losses(tiny) == pytest.approx(losses(tiny, "cpu"), rel=1e-5)


def test_bfloat16_on_a_gpu_stays_near_it(tiny: TinyTask, on_cpu: list[float]) -> None:
    done = tiny.run(*GPU, "--model.model_config.compute_dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    assert losses(tiny) == pytest.approx(on_cpu, rel=2e-2)


def test_a_worker_forked_by_the_launcher_has_the_gpu(tiny: TinyTask, on_cpu: list[float]) -> None:
    """What is forked after CUDA was touched cannot use it: the fork server must not have."""
    done = msrun(tiny, 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tiny) == pytest.approx(on_cpu, rel=2e-6)


def test_more_workers_than_gpus_are_refused_by_name(tiny: TinyTask) -> None:
    count = torch.cuda.device_count()
    arguments = ("--use_parallel", "True", "--parallel_config.data_parallel", str(count + 1))
    done = msrun(tiny, count + 1, *arguments)
    assert done.returncode not in (0, None)
    assert f"device_id {count}: there are {count} CUDA devices" in done.stdout + done.stderr


def test_a_run_goes_on_from_a_cpu_on_a_gpu(tiny: TinyTask, on_cpu: list[float]) -> None:
    kept = min((tiny.folder / "cpu/checkpoint").iterdir())
    done = tiny.run(*GPU, "--load_checkpoint", str(kept), "--resume_training", "True")
    assert done.returncode == 0, done.stderr
    rows = tiny.rows()
    assert rows[0]["step"] == int(kept.name.rpartition("_")[2]) + 1
    assert [row["loss"] for row in rows] == pytest.approx(on_cpu[rows[0]["step"] - 1 :], rel=2e-6)


def test_gradients_are_summed_by_nccl(tmp_path: Path) -> None:
    """One rank that takes itself for one of two: its sum is its own gradient, which an average would halve."""
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1, device_id=device)
    try:
        group = Group(0, 2, device)
        model = nn.Linear(4, 3).to(device)
        copy = copy_over_ranks(model, group)
        rows: Tensor = torch.randn(5, 4, device=device)
        copy(rows).sum().backward()
        expected = rows.sum(0).expand(3, 4)
        torch.testing.assert_close(model.weight.grad, expected)
        assert group.gather(7) == [7, 0]
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("compiled", [False, True])
def test_answers_are_those_of_a_cpu(compiled: bool) -> None:
    options = ModelOptions(
        vocab_size=199, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16,
        max_positions=128, initializer_range=0.3,
    )  # fmt: skip
    prompts = [[5, 17, 3, 120, 44], [9], [61, 61, 2, 8, 150, 33, 71, 12, 90]]
    answers = []
    for device in ("cpu", "cuda"):
        model = build_model(options, Precision(), torch.device(device)).eval()
        initialise(model, seed=1)
        prepare_for_generation(model)
        settings = Settings(max_new_tokens=24)
        lengths = LengthLimit(settings, options.max_positions)
        compiles = compiled and device == "cuda"
        engine = Generator(undivided(model), settings, eos_ids=frozenset(), lengths=lengths, compile=compiles)
        answers.append(engine.generate(prompts))
    assert answers[0] == answers[1]
