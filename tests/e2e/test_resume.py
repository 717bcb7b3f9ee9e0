"""A run that was stopped goes on as if it never had been: bit for bit, in place, wherever it stopped."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_task import TinyTask

CURVE = ("step", "epoch", "loss", "grad_norm", "lr", "tokens")


def curve(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(row[key] for key in CURVE) for row in rows]


def saved_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(checkpoint.glob("*.safetensors")) for name, t in load_file(file).items()}


def assert_same_checkpoint(one: Path, other: Path) -> None:
    first, second = saved_tensors(one), saved_tensors(other)
    assert set(first) == set(second)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# Two passes make an epoch, in an order that is nowhere stored; rows hold several documents.
HASHED = (
    *("--train_dataset.data_loader.shuffle", "hashed", "--train_dataset.repeat", "2", "--epochs", "1"),
    *("--train_dataset.eod_reset", "True", "--train_dataset.eod_token_id", "5"),
)
LORA = ("--model.model_config.pet_config", '{"pet_type": "lora", "lora_rank": 4, "lora_dropout": 0.2}')


@pytest.mark.parametrize(
    "extra", [(), LORA, ("--gradient_accumulation_steps", "2"), HASHED], ids=["full", "lora", "accumulated", "hashed"]
)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tiny: TinyTask, extra: tuple[str, ...]) -> None:
    whole = tiny.run("--output_dir", "whole", *extra)
    assert whole.returncode == 0, whole.stderr
    shutil.copytree(tiny.folder / "whole", tiny.folder / "output")
    for folder in sorted((tiny.folder / "output/checkpoint").iterdir())[1:]:
        shutil.rmtree(folder)  # as if the run had died in the middle of the first epoch, after its first save
    resumed = tiny.run("--resume_training", "True", *extra)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 3" in resumed.stdout
    assert curve(tiny.rows()) == curve(tiny.rows("whole"))
    for name in ("training.jsonl", "checkpoint"):
        assert (tiny.folder / "output" / name).exists()
    last = max((tiny.folder / "whole/checkpoint").iterdir()).name
    assert_same_checkpoint(tiny.folder / "whole/checkpoint" / last, tiny.folder / "output/checkpoint" / last)


def test_a_restart_by_another_launcher_does_not_take_up_an_earlier_run(tiny: TinyTask) -> None:
    """torchrun starts again whatever has happened: the checkpoints that are there may be another run's."""
    first = tiny.run()
    assert first.returncode == 0, first.stderr
    again = tiny.run("--seed", "8", environment={"TORCHELASTIC_RESTART_COUNT": "1"})
    assert again.returncode == 0, again.stderr
    assert "an earlier run's rows and checkpoints are now in" in again.stdout
    assert curve(tiny.rows())[0] != curve(tiny.rows("output/run_1"))[0]
    assert len(tiny.rows()) == 20


def test_kill_in_the_middle_then_resume(tiny: TinyTask) -> None:
    whole = tiny.run("--output_dir", "whole")
    assert whole.returncode == 0, whole.stderr
    process = tiny.start()
    try:
        wait_for(tiny.folder / "output/checkpoint/iteration_00000006")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    resumed = tiny.run("--resume_training", "True")
    assert resumed.returncode == 0, resumed.stderr
    assert curve(tiny.rows()) == curve(tiny.rows("whole"))


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


def test_a_torn_row_is_removed_and_its_step_done_again(tiny: TinyTask) -> None:
    assert tiny.run("--epochs", "1").returncode == 0
    path = tiny.folder / "output/training.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:40])
    shutil.rmtree(tiny.folder / "output/checkpoint/iteration_00000010")
    resumed = tiny.run("--epochs", "1", "--resume_training", "True")
    assert resumed.returncode == 0, resumed.stderr
    assert [row["step"] for row in tiny.rows()] == list(range(1, 11))


def test_resuming_a_finished_run_says_so(tiny: TinyTask) -> None:
    assert tiny.run("--epochs", "1").returncode == 0
    before = (tiny.folder / "output/training.jsonl").read_bytes()
    again = tiny.run("--epochs", "1", "--resume_training", "True")
    assert again.returncode == 0, again.stderr
    assert "nothing left to do" in again.stdout
    assert (tiny.folder / "output/training.jsonl").read_bytes() == before


def test_more_epochs_go_on_from_a_finished_run(tiny: TinyTask) -> None:
    constant = ("--lr_schedule.type", "ConstantWarmUpLR", "--lr_schedule.total_steps", "100")
    assert tiny.run("--epochs", "1", *constant).returncode == 0
    assert tiny.run("--epochs", "2", "--resume_training", "True", *constant).returncode == 0
    assert tiny.run("--epochs", "2", "--output_dir", "whole", *constant).returncode == 0
    assert curve(tiny.rows()) == curve(tiny.rows("whole"))


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tiny: TinyTask) -> None:
    assert tiny.run("--epochs", "1").returncode == 0
    newest = tiny.folder / "output/checkpoint/iteration_00000010"
    (file,) = newest.glob("*-model-*.safetensors")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    resumed = tiny.run("--epochs", "1", "--resume_training", "True")
    assert resumed.returncode == 0, resumed.stderr
    assert "iteration_00000010" in resumed.stdout
    assert "resuming after step 9" in resumed.stdout


def test_another_batch_size_takes_up_the_next_sample(tiny: TinyTask) -> None:
    """After 16 of 20 rows, by 2: by 4 that are 4 steps of 5. Numbers of steps go on; nothing is seen twice."""
    keep = "--callbacks.1.keep_checkpoint_max", "30"
    assert tiny.run("--epochs", "2", *keep).returncode == 0
    for step in (9, 12, 15, 18, 20):
        shutil.rmtree(tiny.folder / f"output/checkpoint/iteration_{step:08}")
    resumed = tiny.run("--epochs", "2", "--resume_training", "True", "--batch_size", "4", *keep)
    assert resumed.returncode == 0, resumed.stderr
    assert "the global batch was 2 samples and is 4: 6 steps count as 3 for epochs" in resumed.stdout
    rows = tiny.rows()
    assert [row["step"] for row in rows[6:13]] == list(range(7, 14))
    assert [row["epoch"] for row in rows[6:13]] == [1, 1, 2, 2, 2, 2, 2]
    assert [row["tokens"] for row in rows[6:13]] == [64] * 7
    again = tiny.run("--epochs", "2", "--resume_training", "True", "--batch_size", "4", *keep)
    assert "nothing left to do: step 13 of 13" in again.stdout
    rows_of = dict(zip(range(7, 14), rows[6:13], strict=True))
    whole = tiny.run("--epochs", "2", "--batch_size", "4", "--output_dir", "whole")
    assert whole.returncode == 0
    for row in tiny.rows("whole")[3:]:
        assert rows_of[row["step"] + 3]["lr"] == row["lr"]


@pytest.mark.parametrize(("asked", "skipped"), [(("--ignore_data_skip", "True"), 0), (("--data_skip_steps", "3"), 3)])
def test_other_rows_to_go_on_with(tiny: TinyTask, asked: tuple[str, ...], skipped: int) -> None:
    """Without dropout a step hangs on its weights and rows only: those of an evaluation tell which rows they were."""
    frozen = ("--lr_schedule.learning_rate", "0.0", "--lr_schedule.lr_end", "0.0", "--optimizer.weight_decay", "0.0")
    assert tiny.run("--epochs", "2", *frozen).returncode == 0
    losses = [row["loss"] for row in tiny.rows()]
    shutil.rmtree(tiny.folder / "output/checkpoint/iteration_00000020")
    shutil.rmtree(tiny.folder / "output/checkpoint/iteration_00000018")
    resumed = tiny.run("--epochs", "2", *frozen, "--resume_training", "True", *asked)
    assert resumed.returncode == 0, resumed.stderr
    assert [row["loss"] for row in tiny.rows()[15:]] == losses[skipped : skipped + 5]
    shutil.rmtree(tiny.folder / "output/checkpoint/iteration_00000020")
    again = tiny.run("--epochs", "2", *frozen, "--resume_training", "True")
    assert again.returncode == 0, again.stderr
    assert [row["loss"] for row in tiny.rows()[15:]] == losses[skipped : skipped + 5], "the next row stays the next"


def test_a_new_run_sets_the_earlier_one_aside(tiny: TinyTask) -> None:
    assert tiny.run("--epochs", "2", "--callbacks.1.save_network_params", "True").returncode == 0
    earlier = tiny.rows()
    assert tiny.run("--epochs", "1", "--seed", "8").returncode == 0
    assert len(tiny.rows()) == 10
    assert tiny.rows("output/run_1") == earlier
    for folder in ("checkpoint", "checkpoint_network"):
        assert (tiny.folder / f"output/run_1/{folder}/iteration_00000020/metadata.json").is_file()
    assert not (tiny.folder / "output/checkpoint_network").exists()
    resumed = tiny.run("--epochs", "1", "--seed", "8", "--resume_training", "True")
    assert "nothing left to do: step 10 of 10" in resumed.stdout


def test_nothing_to_resume_from_is_an_error(tiny: TinyTask) -> None:
    done = tiny.run("--resume_training", "True")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "output" in done.stderr
