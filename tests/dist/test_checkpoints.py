"""Checkpoints of several processes: each writes its own part, together they are the model, whoever wrote and when."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from curves import rows
from launching import REPOSITORY, finish, flags, launch, start, wait_until, worker_pids
from test_parallel_commands import QWEN, WEIGHTS_SHARED, sizes
from tiny_task import TinyTask

from runformer.checkpoint import complete_checkpoints, open_checkpoint

COMMAND = ("run_mindformer.py", "--config", "config.yaml", "--use_parallel", "True")
MONITOR = "--callbacks.1."
FOUR = [*sizes(data_parallel=2, model_parallel=2), "--batch_size", "2", *QWEN]
SHARDED = [*FOUR, "--parallel.enable_parallel_optimizer", "True"]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    checkpoint.verify()
    return {name: checkpoint[name] for name in checkpoint}


def assert_same_bits(ours: Path, theirs: Path) -> None:
    """All steps of two runs have the same checkpoints, whatever their files."""
    steps = complete_checkpoints(ours / "checkpoint")
    assert steps.keys() == complete_checkpoints(theirs / "checkpoint").keys()
    for step, folder in steps.items():
        held, expected = tensors(folder), tensors(theirs / "checkpoint" / folder.name)
        assert held.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(held[name].view(torch.uint8), tensor.view(torch.uint8)), (step, name)
        commons = [json.loads((root / "checkpoint" / folder.name / "common.json").read_text()) for root in (ours, theirs)]
        assert commons[0] == commons[1]


def train(tiny: TinyTask, output: str, ranks: int, *arguments: str) -> None:
    done = launch(tiny.folder, ranks, *COMMAND, *arguments, "--output_dir", output)
    assert done.exit_code == 0, done.err


def test_each_rank_writes_its_part_now_or_later_or_rank_0_all(tiny: TinyTask) -> None:
    train(tiny, "parts", 4, *SHARDED, MONITOR + "save_network_params", "True")
    files = sorted(path.name for path in (tiny.folder / "parts/checkpoint/iteration_00000006").iterdir())
    expected = [f"tiny-{kind}-{rank:07}-0000004.safetensors" for kind in ("model", "opt") for rank in range(4)]
    assert files == ["common.json", "metadata.json", *expected]
    train(tiny, "later", 4, *SHARDED, MONITOR + "async_save", "True")
    assert_same_bits(tiny.folder / "later", tiny.folder / "parts")
    train(tiny, "whole", 4, *SHARDED, MONITOR + "integrated_save", "True")
    assert len(list((tiny.folder / "whole/checkpoint/iteration_00000006").glob("*.safetensors"))) == 2
    assert_same_bits(tiny.folder / "whole", tiny.folder / "parts")
    for step, folder in complete_checkpoints(tiny.folder / "parts/checkpoint_network").items():
        held = tensors(folder)
        assert not any(name.startswith("exp_avg") for name in held)
        state = tensors(tiny.folder / f"parts/checkpoint/iteration_{step:08}")
        assert all(torch.equal(tensor, state[name]) for name, tensor in held.items())


@pytest.mark.parametrize(
    "layout",
    [pytest.param(SHARDED, id="optimizer", marks=pytest.mark.slow), pytest.param([*FOUR, *WEIGHTS_SHARED], id="weights")],
)
def test_a_resume_in_the_same_layout_is_bit_for_bit(tiny: TinyTask, layout: list[str]) -> None:
    behind = (MONITOR + "async_save", "True")
    train(tiny, "whole", 4, *layout, *behind)
    shutil.copytree(tiny.folder / "whole", tiny.folder / "again")
    for step, folder in complete_checkpoints(tiny.folder / "again/checkpoint").items():
        if step > 3:
            shutil.rmtree(folder)
    train(tiny, "again", 4, *layout, *behind, "--resume_training", "True")
    assert_same_bits(tiny.folder / "again", tiny.folder / "whole")
    ours, theirs = (rows(tiny.folder / name) for name in ("again", "whole"))
    assert [[row[key] for key in ("loss", "grad_norm", "lr")] for row in ours.values()] == [
        [row[key] for key in ("loss", "grad_norm", "lr")] for row in theirs.values()
    ]


def test_a_damaged_part_lets_all_ranks_fall_back(tiny: TinyTask) -> None:
    train(tiny, "output", 4, *SHARDED)
    newest = tiny.folder / "output/checkpoint/iteration_00000010"
    part = newest / "tiny-opt-0000002-0000004.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    done = launch(tiny.folder, 4, *COMMAND, *SHARDED, "--resume_training", "True")
    assert done.exit_code == 0, done.err
    logs = "".join(done.log(rank) for rank in range(4))
    assert "tiny-opt-0000002-0000004.safetensors: damaged in chunk 0" in logs
    assert "resuming after step 9" in done.log(0)
    assert "damaged, as another rank has found" in logs


# Rank 1 sees an empty disk of its own where the others see the output.
ALONE = """
import ctypes, os, runpy, sys
if os.environ["RANK"] == "1":
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(0x20000) or library.mount(b"none", b"/", None, 0x44000, None):
        sys.exit("no mount namespace")
    os.makedirs("output", exist_ok=True)
    if library.mount(b"tmpfs", b"output", b"tmpfs", 0, None):
        sys.exit("no disk of its own")
sys.argv = {order!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process a disk of its own")
def test_a_disk_that_is_not_shared_is_named_and_rank_0_writes_alone(tiny: TinyTask) -> None:
    layout = [*sizes(model_parallel=2), "--batch_size", "4", *QWEN]
    order = [str(REPOSITORY / COMMAND[0]), *COMMAND[1:], *layout]
    (tiny.folder / "alone.py").write_text(ALONE.format(order=order))
    done = launch(tiny.folder, 2, "alone.py")
    if "no mount namespace" in done.err:
        pytest.skip("no mount namespaces here")
    assert done.exit_code == 0, done.err
    assert "not all machines see the same" in done.log(0)
    train(tiny, "whole", 2, *layout, MONITOR + "integrated_save", "True")
    assert_same_bits(tiny.folder / "output", tiny.folder / "whole")


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_ranks_that_are_killed_while_they_save_lose_nothing(tiny: TinyTask, kills: int) -> None:
    """All at once, at a random moment of a run that does little but save; then it goes on, in this layout or alone."""
    chance = random.Random(9)
    often = (MONITOR + "save_checkpoint_steps", "1", MONITOR + "async_save", "True", "--epochs", "400")
    for kill in range(kills):
        log_dir = tiny.folder / f"logs_{kill}"
        resume = ("--resume_training", "True") if kill else ()
        process = start([*flags(4, log_dir), *COMMAND, *SHARDED, *often, *resume], tiny.folder)
        before = newest(tiny)
        wait_until(lambda before=before: newest(tiny) > before + 1, "some checkpoints")
        time.sleep(chance.uniform(0, 0.2))
        for pid in worker_pids(log_dir, 4).values():
            os.kill(pid, signal.SIGKILL)
        told = saved_steps(log_dir)
        finish(process, log_dir)
        for folder in complete_checkpoints(tiny.folder / "output/checkpoint").values():
            open_checkpoint(folder).verify()
        assert newest(tiny) >= max(told, default=0)
    alone = tiny.run(*QWEN, "--epochs", "400", "--batch_size", "4", "--resume_training", "True", "--dry_run", "True")
    assert alone.returncode == 0, alone.stderr


def newest(tiny: TinyTask) -> int:
    return max(complete_checkpoints(tiny.folder / "output/checkpoint"), default=0)


def saved_steps(log_dir: Path) -> list[int]:
    return [int(step) for step in re.findall(r"saved .*iteration_(\d+)", (log_dir / "worker_0.log").read_text())]
