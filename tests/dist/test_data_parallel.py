"""Several ranks train one model exactly as one process does, and as the original does where that is asked for."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from curves import assert_same_curve, assert_same_weights, rows
from launching import REPOSITORY, environment, finish, flags, free_port, launch, start, wait_until, worker_pids
from tiny_task import TinyTask

COMMAND = ("run_mindformer.py", "--config", "config.yaml")
LORA = ("--model.model_config.pet_config", '{"pet_type": "lora", "lora_rank": 4, "lora_dropout": 0.0}')
TIED = ("--model.model_config.tie_word_embeddings", "True")


def parallel(ranks: int, *more: str) -> list[str]:
    return ["--use_parallel", "True", "--parallel_config.data_parallel", str(ranks), *more]


CASES: dict[str, tuple[int, Sequence[str], Sequence[str]]] = {
    # name: ranks, arguments of one process, arguments of several
    "two": (2, ["--batch_size", "2"], ["--batch_size", "1"]),
    "accumulating": (
        2,
        ["--batch_size", "4"],
        ["--batch_size", "1", "--gradient_accumulation_steps", "2"],
    ),
    "three with a rest": (
        3,
        ["--batch_size", "6", "--train_dataset.drop_remainder", "False"],
        ["--batch_size", "2", "--train_dataset.drop_remainder", "False"],
    ),
    "more ranks than rows": (
        4,
        ["--batch_size", "12", "--train_dataset.drop_remainder", "False", "--train_dataset.data_loader.num_samples", "14"],
        ["--batch_size", "3", "--train_dataset.drop_remainder", "False", "--train_dataset.data_loader.num_samples", "14"],
    ),
    "tied": (2, ["--batch_size", "2", *TIED], ["--batch_size", "1", *TIED]),
    "lora": (2, ["--batch_size", "2", *LORA], ["--batch_size", "1", *LORA]),
    "unclipped": (
        2,
        ["--batch_size", "2", "--runner_wrapper.max_grad_norm", "1000.0"],
        ["--batch_size", "1", "--runner_wrapper.max_grad_norm", "1000.0"],
    ),
}


# Ties, clipping and plain pairs of ranks are also among the exact layouts.
_ALSO_EXACT = ("two", "tied", "unclipped")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in _ALSO_EXACT else case for case in CASES]
)
def test_ranks_learn_what_one_process_does(tiny: TinyTask, case: str) -> None:
    ranks, alone, together = CASES[case]
    one = tiny.run("--output_dir", "one", *alone)
    assert one.returncode == 0, one.stderr
    many = launch(tiny.folder, ranks, *COMMAND, "--output_dir", "many", *parallel(ranks, *together))
    assert many.exit_code == 0, many.err
    assert_same_curve(tiny.folder / "many", tiny.folder / "one")
    assert_same_weights(tiny.folder / "many", tiny.folder / "one")


@pytest.mark.slow
def test_ranks_have_very_different_numbers_of_tokens(tiny: TinyTask) -> None:
    """Else the cases above could not tell a global mean from a mean of means."""
    one = tiny.run("--output_dir", "one", "--batch_size", "2")
    assert one.returncode == 0, one.stderr
    original = parallel(2, "--batch_size", "1", "--parallel.reference_semantics", "True")
    extra = ["--parallel.parallel_mode", "0", "--parallel.gradients_mean", "True"]
    many = launch(tiny.folder, 2, *COMMAND, "--output_dir", "many", *original, *extra)
    assert many.exit_code == 0, many.err
    ours, theirs = rows(tiny.folder / "many"), rows(tiny.folder / "one")
    assert max(abs(ours[step]["loss"] / theirs[step]["loss"] - 1) for step in theirs) > 1e-3


@pytest.mark.parametrize("starter", [pytest.param("torchrun", marks=pytest.mark.slow), pytest.param("mpirun", marks=pytest.mark.slow), "srun"])
def test_other_starters_run_the_same_task(tiny: TinyTask, starter: str) -> None:
    alone = tiny.run("--output_dir", "one", "--batch_size", "2")
    assert alone.returncode == 0, alone.stderr
    words = [str(REPOSITORY / COMMAND[0]), *COMMAND[1:], "--output_dir", "many", *parallel(2, "--batch_size", "1")]
    if starter == "torchrun":
        lead = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
        outputs = [run_all([[*lead, *words]], [{}], tiny.folder)]
    else:
        names = VARIABLES[starter]
        port = {"MASTER_PORT": str(free_port())}
        environments = [{name: str(value(rank)) for name, value in names.items()} | port for rank in range(2)]
        outputs = [run_all([words, words], environments, tiny.folder)]
    assert_same_curve(tiny.folder / "many", tiny.folder / "one")
    # One rank speaks on a terminal that all share.
    assert sum(text.count("saved ") for text in outputs) == len(list((tiny.folder / "many/checkpoint").iterdir()))


VARIABLES = {
    "mpirun": {
        "OMPI_COMM_WORLD_RANK": lambda rank: rank,
        "OMPI_COMM_WORLD_SIZE": lambda _: 2,
        "OMPI_COMM_WORLD_LOCAL_RANK": lambda rank: rank,
        "OMPI_COMM_WORLD_LOCAL_SIZE": lambda _: 2,
    },
    "srun": {
        "SLURM_PROCID": lambda rank: rank,
        "SLURM_STEP_NUM_TASKS": lambda _: 2,
        "SLURM_LOCALID": lambda rank: rank,
        "SLURM_STEP_TASKS_PER_NODE": lambda _: 2,
        "SLURM_STEP_NODELIST": lambda _: "localhost",
        "SLURM_JOB_ID": lambda _: 77,
        "SLURM_STEP_ID": lambda _: 0,
    },
}


def run_all(commands: list[list[str]], environments: list[dict[str, str]], folder: Path) -> str:
    """Run commands at the same time; what they print."""
    running = [
        start([sys.executable, *command], folder, env)
        for command, env in zip(commands, environments, strict=True)
    ]
    ended = [finish(process, folder) for process in running]
    assert [one.exit_code for one in ended] == [0] * len(ended), [one.err for one in ended]
    return "".join(one.out for one in ended)


@pytest.mark.slow  # the original's own numbers are in test_data_parallel_oracle.py
def test_accumulation_as_the_original_has_it(tiny: TinyTask) -> None:
    """Micro-batches are normalised one by one, so a step's loss is the mean of theirs."""
    original = ("--parallel.reference_semantics", "True", "--gradient_accumulation_steps", "2")
    done = launch(tiny.folder, 2, *COMMAND, *parallel(2, "--batch_size", "1", *original), "--output_dir", "two")
    assert done.exit_code == 0, done.err
    halves = tiny.run("--output_dir", "half", "--batch_size", "2", "--train_dataset.data_loader.num_samples", "4")
    assert halves.returncode == 0, halves.stderr
    first, second = rows(tiny.folder / "two"), rows(tiny.folder / "half")
    assert set(first) == set(range(1, 11))
    assert set(second) == set(range(1, 5))
    alone = tiny.run(*parallel(1, *original, "--parallel.parallel_mode", "0"), "--output_dir", "one")
    assert alone.returncode == 0, alone.stderr
    assert "gradient_accumulation_steps: 2 is 1 in this mode, as in MindFormers" in alone.stdout


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(tiny: TinyTask) -> None:
    whole = tiny.run("--output_dir", "whole", "--batch_size", "2")
    assert whole.returncode == 0, whole.stderr
    two = [*COMMAND, "--output_dir", "output", *parallel(2, "--batch_size", "1")]
    done = launch(tiny.folder, 2, *two)
    assert done.exit_code == 0, done.err
    for turn, ranks in enumerate((1, 2)):
        for folder in sorted((tiny.folder / "output/checkpoint").iterdir())[1 + turn :]:
            shutil.rmtree(folder)
        if ranks == 1:
            again = tiny.run("--resume_training", "True", "--batch_size", "2")
            assert again.returncode == 0, again.stderr
        else:
            done = launch(tiny.folder, 2, *two, "--resume_training", "True")
            assert done.exit_code == 0, done.err
        assert_same_curve(tiny.folder / "output", tiny.folder / "whole")
    assert_same_weights(tiny.folder / "output", tiny.folder / "whole")


def test_ranks_that_find_different_checkpoints_say_so(tiny: TinyTask) -> None:
    done = launch(tiny.folder, 2, *COMMAND, *parallel(2, "--batch_size", "1"))
    assert done.exit_code == 0, done.err
    shutil.copytree(tiny.folder / "output/checkpoint", tiny.folder / "other")
    shutil.rmtree(max((tiny.folder / "other").iterdir()))
    order = [str(REPOSITORY / COMMAND[0]), *COMMAND[1:], *parallel(2, "--batch_size", "1", "--resume_training", "True")]
    script = tiny.folder / "differ.py"
    script.write_text(
        "import os, runpy, sys\n"
        f"sys.argv = {order!r} + ['--load_checkpoint', 'other' if os.environ['RANK'] == '1' else 'output']\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = launch(tiny.folder, 2, "differ.py")
    assert done.exit_code == 1
    assert "the ranks found different checkpoints to go on from: rank 0: step 20, rank 1: step 18" in done.err


def test_a_rank_that_is_told_to_end_takes_all_along_after_saving(tiny: TinyTask) -> None:
    order = [*COMMAND, *parallel(2, "--batch_size", "1", "--epochs", "30")]
    whole = launch(tiny.folder, 2, *order, "--output_dir", "whole")
    assert whole.exit_code == 0, whole.err
    log_dir = tiny.folder / "logs_told"
    process = start([*flags(2, log_dir), *order], tiny.folder)
    wait_until(lambda: len(metrics(tiny.folder)) > 20, "some steps")
    os.kill(worker_pids(log_dir, 2)[1], signal.SIGUSR1)
    done = finish(process, log_dir)
    assert done.exit_code == 75
    assert re.search(r"told to end: the run stops after step \d+ of 300, and has saved: --resume_training True goes", done.out)
    last = max(rows(tiny.folder / "output"))
    assert max((tiny.folder / "output/checkpoint").iterdir()).name == f"iteration_{last:08}"
    again = launch(tiny.folder, 2, *order, "--resume_training", "True")
    assert again.exit_code == 0, again.err
    assert exact(tiny.folder / "output") == exact(tiny.folder / "whole")


def metrics(folder: Path) -> list[str]:
    path = folder / "output/training.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def exact(output: Path) -> list[list[Any]]:
    return [[row[key] for key in ("step", "epoch", "loss", "grad_norm", "lr", "tokens")] for row in rows(output).values()]


def test_a_killed_rank_is_started_again_from_the_newest_checkpoint(tiny: TinyTask) -> None:
    order = [*COMMAND, *parallel(2, "--batch_size", "1", "--epochs", "20")]
    whole = launch(tiny.folder, 2, *order, "--output_dir", "whole")
    assert whole.exit_code == 0, whole.err
    log_dir = tiny.folder / "logs_again"
    process = start([*flags(2, log_dir, "--max_restarts", "1"), *order], tiny.folder)
    wait_until(lambda: len(metrics(tiny.folder)) > 20, "some steps")
    os.kill(worker_pids(log_dir, 2)[1], signal.SIGKILL)
    done = finish(process, log_dir)
    assert done.exit_code == 0, done.err
    assert [row["outcome"] for row in done.events("verdict")] == ["restart", "succeeded"]
    assert "started again: going on from" in done.log(0)
    assert "Epoch:[  1/ 20], step:[    1/   10]" in (log_dir / "attempt_0/worker_0.log").read_text()
    assert exact(tiny.folder / "output") == exact(tiny.folder / "whole")


def test_a_mistake_in_the_task_is_not_tried_again(tiny: TinyTask) -> None:
    done = launch(tiny.folder, 2, *COMMAND, *parallel(3), more=["--max_restarts", "3"])
    assert done.exit_code == 78
    assert len(done.events("verdict")) == 1
    assert "data_parallel 3" in "\n".join(done.summary)
    assert "this run has 2 devices" in "\n".join(done.summary)


def test_a_save_that_fails_ends_all_ranks(tiny: TinyTask) -> None:
    blocked = tiny.folder / "output/checkpoint"
    script = tiny.folder / "blocked.py"
    script.write_text(
        "import runpy, sys\n"
        "from runformer.checkpoint import CheckpointStore\n"
        "from runformer.errors import CheckpointError\n"
        "whole = CheckpointStore.save\n"
        "def save(self, state):\n"
        "    if self._group.is_first:\n"
        "        raise CheckpointError('the disk is full, as planned')\n"
        "    return whole(self, state)\n"
        "CheckpointStore.save = save\n"
        f"sys.argv = [{str(REPOSITORY / COMMAND[0])!r}, *sys.argv[1:]]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = launch(tiny.folder, 2, "blocked.py", *COMMAND[1:], *parallel(2, "--batch_size", "1"))
    assert done.exit_code == 1
    assert "rank 0 on" in done.summary[0]
    assert "the disk is full, as planned" in done.summary[1]
    assert max(rows(tiny.folder / "output")) == 3
    assert not blocked.exists()


def test_rank_0_writes_and_every_rank_has_a_log(tiny: TinyTask) -> None:
    done = launch(tiny.folder, 2, *COMMAND, *parallel(2, "--batch_size", "1"))
    assert done.exit_code == 0, done.err
    assert sorted(path.name for path in (tiny.folder / "output/log").iterdir()) == ["rank_0", "rank_1"]
    lines = (tiny.folder / "output/training.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 21))
    assert done.out.count("Epoch:[") == 20, "rank 0's lines, once"
    assert "Epoch:[" in done.log(1), "each worker's log has its own"


def test_evaluation_over_ranks_gives_the_same_figure(tiny: TinyTask) -> None:
    config = (tiny.folder / "config.yaml").read_text()
    evaluated = "eval_dataset: &eval_dataset\n  data_loader: {type: MindDataset, dataset_dir: data.mindrecord}\n"
    evaluated += "  input_columns: [input_ids, labels]\n  batch_size: 3\n"
    (tiny.folder / "config.yaml").write_text(config + evaluated)
    figures = []
    for ranks in (1, 3):
        arguments = ["--do_eval", "True", "--eval_epoch_interval", "1", "--eval_step_interval", "-1"]
        output = ["--output_dir", f"out_{ranks}"]
        if ranks == 1:
            done = tiny.run("--batch_size", "3", *arguments, *output)
            assert done.returncode == 0, done.stderr
        else:
            ended = launch(tiny.folder, 3, *COMMAND, *parallel(3, "--batch_size", "1"), *arguments, *output)
            assert ended.exit_code == 0, ended.err
        lines = (tiny.folder / f"out_{ranks}/evaluation.jsonl").read_text().splitlines()
        figures.append([json.loads(line) for line in lines])
    assert len(figures[0]) == len(figures[1]) == 2
    for alone, together in zip(*figures, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert (together["tokens"], together["samples"]) == (alone["tokens"], alone["samples"])


def test_one_process_that_is_told_to_end_saves_too(tiny: TinyTask) -> None:
    process = tiny.start("--epochs", "60")
    wait_until(lambda: len(metrics(tiny.folder)) > 5, "some steps")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "and has saved" in err
    last = max(rows(tiny.folder / "output"))
    assert max((tiny.folder / "output/checkpoint").iterdir()).name == f"iteration_{last:08}"


def test_a_rank_without_the_others_says_what_it_waits_for(tmp_path: Path, tiny: TinyTask) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / COMMAND[0]), *COMMAND[1:], *parallel(2)],
        cwd=tiny.folder, env=environment({"WORLD_SIZE": "2"}), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert "WORLD_SIZE is set in the environment, and RANK is not" in done.stderr
