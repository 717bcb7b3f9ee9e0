"""Checkpoints: how fast they are saved, loaded and laid out anew, what that costs a training run, and what survives.

    python benchmarks/checkpoints.py --output benchmarks/checkpoints.md

Speeds are of the state of SmolLM2-135M with Adam's moments in float32, 1.6 GB: ours (every chunk hashed), a plain copy
of the same bytes, ``torch.distributed.checkpoint`` and safetensors, one after the other in one run, several rounds, in
an order of chance; medians. Everything that is written is brought to the disk before what was there is removed. Loads
fill memory that is there already; the files are in the page cache. The other tables are of ``tests/``, which run the
same things with fewer trials.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common import REPOSITORY, SHAPES, describe_machine

sys.path[:0] = [str(REPOSITORY / folder) for folder in ("tests/dist", "tests/unit", "tests")]

import torch  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from checkpoint_stalls import stalls  # noqa: E402
from checkpoint_states import state  # noqa: E402
from checkpoint_trials import damage_and_read, kill_savers  # noqa: E402
from curves import rows  # noqa: E402
from launching import launch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from test_parallel_commands import QWEN, WEIGHTS_SHARED, sizes  # noqa: E402
from tiny_task import TinyTask, make_tiny_task  # noqa: E402
from torch import Tensor  # noqa: E402

from runformer.checkpoint import CheckpointStore, Keep, TrainingState, open_checkpoint, share  # noqa: E402
from runformer.checkpoint.layout import sync_file  # noqa: E402
from runformer.models.part import Box  # noqa: E402

WORKER = REPOSITORY / "benchmarks/checkpoint_worker.py"
GB = 1e9


def section(title: str, text: str, head: list[str], lines: list[list[str]]) -> str:
    """A heading, a sentence and a table, in Markdown."""
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *lines))
    found = f"## {title}\n\n{text}\n\n{table}\n"
    print(found, flush=True)
    return found


def model_state() -> dict[str, Tensor]:
    """Random tensors of a real model's shapes, and its moments."""
    from checkpoint_worker import options_of

    from runformer.config.task import Precision
    from runformer.models.build import outline

    shapes = {name: p.shape for name, p in outline(options_of(SHAPES["SmolLM2-135M"]), Precision()).named_parameters()}
    parameters = {name: torch.randn(shape) for name, shape in shapes.items()}
    moments = {
        f"{kind}.{name}": torch.randn(shape) for kind in ("exp_avg", "exp_avg_sq") for name, shape in shapes.items()
    }
    return parameters | moments


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write_beside(folder: Path, number: int, write: Callable[[Path], object]) -> None:
    """As our store does: what was saved before stays until the new one is on the disk."""
    before, new = newest(folder), folder / f"{number:08}"
    new.mkdir(parents=True)
    write(new)
    for file in new.iterdir():
        sync_file(file)
    if before is not None:
        shutil.rmtree(before)


def newest(folder: Path) -> Path | None:
    return max(folder.iterdir(), default=None) if folder.is_dir() else None


def speeds(folder: Path, rounds: int) -> str:
    """Save and load bandwidth."""
    tensors = model_state()
    size = sum(tensor.nbytes for tensor in tensors.values())
    store, content = CheckpointStore(folder / "ours", "x", Keep(1)), folder / "content"
    content.write_bytes(b"".join(tensor.numpy().tobytes() for tensor in tensors.values()))
    targets = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    numbers = itertools.count(1)

    def ours() -> None:
        store.save(TrainingState.whole(tensors, {}, {"step": next(numbers)}))

    def beside(name: str, write: Callable[[Path], object]) -> None:
        write_beside(folder / name, next(numbers), write)

    def load_ours(verify: Any) -> None:
        checkpoint = open_checkpoint(latest("ours"), verify)
        for name, target in targets.items():
            checkpoint.fill(name, Box.of(tuple(target.shape)), target)

    def read() -> None:
        with (latest("copy") / "content").open("rb", buffering=0) as file:
            for target in targets.values():
                file.readinto(target.view(-1).view(torch.uint8).numpy().data)

    def load_safetensors() -> None:
        for name, tensor in load_file(latest("safetensors") / "model.safetensors").items():
            targets[name].copy_(tensor)

    def latest(name: str) -> Path:
        found = newest(folder / name)
        assert found is not None
        return found

    saves = {
        "ours": ours,
        "plain copy": lambda: beside("copy", lambda new: shutil.copyfile(content, new / "content")),
        "safetensors": lambda: beside("safetensors", lambda new: save_file(tensors, new / "model.safetensors")),
        "DCP": lambda: beside("dcp", lambda new: dcp.save(tensors, checkpoint_id=str(new))),
    }
    loads = {
        "ours": lambda: load_ours("full"),
        "ours, one chunk in 16": lambda: load_ours("sample"),
        "ours, no hashes": lambda: load_ours("none"),
        "plain read": read,
        "safetensors": load_safetensors,
        "DCP": lambda: dcp.load(targets, checkpoint_id=str(latest("dcp"))),
    }
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    chance = random.Random(0)
    for _, (kind, works) in itertools.product(range(rounds), (("save", saves), ("load", loads))):
        for name in chance.sample(list(works), len(works)):  # none always comes after what clears the memory for it
            work = works[name]
            os.sync()  # nobody waits for what another one has written
            seconds[kind, name].append(timed(work))
            print(kind, name, f"{seconds[kind, name][-1]:.2f}", flush=True)
    assert all(torch.equal(targets[name], tensor) for name, tensor in tensors.items())
    return speed_table(seconds, size, rounds)


def speed_table(seconds: Mapping[tuple[str, str], list[float]], size: int, rounds: int) -> str:
    """Medians, and how they compare with a plain copy and a plain read."""
    median = {key: statistics.median(times) for key, times in seconds.items()}
    lines = []
    for (kind, name), times in sorted(seconds.items(), key=lambda item: (item[0][0] != "save", item[0][1])):
        plain = median[kind, "plain copy" if kind == "save" else "plain read"] / median[kind, name]
        spread = f"{min(times):.2f} to {max(times):.2f}"
        lines.append(
            [kind, name, f"{median[kind, name]:.2f}", spread, f"{size / median[kind, name] / GB:.2f}", f"{plain:.2f}"]
        )
    head = ["", "", "seconds", "from … to", "GB/s", "of the plain one"]
    return section(f"Speed: {size / GB:.1f} GB, {rounds} rounds", "On one process, to one disk.", head, lines)


def relaying(folder: Path) -> str:
    """Of a checkpoint of four ranks, every rank of other layouts reads its part; all of them at the same time."""
    subprocess.run([sys.executable, WORKER, "write", folder / "four"], check=True)
    lines = []
    for layout in ("tensor 1", "tensor 2", "tensor 4", "pipeline 4", "data 4, ZeRO 3"):
        count = 1 if layout == "tensor 1" else 2 if layout == "tensor 2" else 4
        gate = folder / f"gate {layout}"
        command = [sys.executable, str(WORKER), "read", str(folder / "four"), layout]
        started = [
            subprocess.Popen([*command, str(rank), str(gate)], stdout=subprocess.PIPE, text=True)
            for rank in range(count)
        ]
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()  # it is there
        gate.touch()
        found = [json.loads(process.communicate()[0]) for process in started]
        share_bytes = max(report["bytes"] for report in found)
        more = max(report["peak"] for report in found) - share_bytes
        seconds = max(report["seconds"] for report in found)
        lines.append([layout, str(count), f"{seconds:.2f}", f"{share_bytes / 2**20:.0f}", f"{more / 2**20:.0f}"])
    text = "Written by tensor 4 with the optimizer's states; the time is that of the last process of each layout."
    head = ["read by", "processes", "seconds", "MiB a process holds", "MiB it took besides at most"]
    return section("Another layout: 1.6 GB", text, head, lines)


def stalling() -> str:
    """What saving costs the steps around it."""
    lines = []
    for name, times in stalls().items():
        steps = sorted(times)
        late = steps[min(len(steps) - 1, round(0.99 * (len(steps) - 1)))]
        middle = statistics.median(steps)
        lines.append(
            [name, str(len(steps)), f"{middle:.2f}", f"{late:.2f}", f"{late / middle:.2f}", f"{sum(steps):.1f}"]
        )
    text = "SmolLM2-135M on two cores, 1.6 GB saved every 12th step. Seconds from one step's begin to the next's."
    return section("Training meanwhile", text, ["saving", "steps", "p50", "p99", "p99 / p50", "sum"], lines)


def surviving(folder: Path, trials: int) -> str:
    """Kills and damage."""
    found = kill_savers(folder / "kills", trials)
    text = f"Savers that write step after step, each killed by SIGKILL at a random moment, {trials} times."
    table = [[str(found.torn), str(found.unloadable), str(found.lost)]]
    kills = section("Killed while saving", text, ["in the middle of a save", "unloadable", "lost a saved step"], table)
    before, share.CHUNK_BYTES = share.CHUNK_BYTES, 64
    whole = CheckpointStore(folder / "damage", "tiny", Keep(1)).save(state(8))
    share.CHUNK_BYTES = before
    lines = [[kind, *map(str, counts)] for kind, counts in damage_and_read(whole, trials).items()]
    text = "One file of a checkpoint each: its manifest, its notes, its parameters or its optimizer's states."
    return kills + "\n" + section("Damaged", text, ["", "trials", "found", "with the file's name"], lines)


LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "1": (1, ["--use_parallel", "False", "--batch_size", "4"]),
    "data 2": (2, [*sizes(data_parallel=2), "--batch_size", "2"]),
    "data 2, ZeRO 3": (2, [*sizes(data_parallel=2), "--batch_size", "2", *WEIGHTS_SHARED]),
    "tensor 2": (2, [*sizes(model_parallel=2), "--batch_size", "4"]),
    "pipeline 2": (2, [*sizes(pipeline_stage=2, micro_batch_num=2), "--batch_size", "2"]),
}
FAULTS = (3, 6, 9)


def train(task: TinyTask, layout: str, output: str, *more: str) -> None:
    ranks, words = LAYOUTS[layout]
    parallel = ["--use_parallel", "True"] if ranks > 1 else []
    command = ["run_mindformer.py", "--config", "config.yaml", *parallel, *words, *QWEN, "--output_dir", output, *more]
    done = launch(task.folder, ranks, *command)
    assert done.exit_code == 0, done.err


def resuming(folder: Path) -> str:
    """From every layout into every other, at several steps."""
    folder.mkdir()
    task = make_tiny_task(REPOSITORY, folder)
    for layout in LAYOUTS:
        train(task, layout, f"whole {layout}")
    lines = []
    for before in LAYOUTS:
        line = [before]
        for after in LAYOUTS:
            worst = 0.0
            for fault in FAULTS:
                worst = max(worst, _resumed(task, before, after, fault))
            line.append("0" if worst == 0 else f"{worst:.0e}")
            print(before, after, line[-1], flush=True)
        lines.append(line)
    text = (
        f"A run ends after step {', '.join(map(str, FAULTS))} of 10 and goes on in another layout: the largest "
        "relative deviation of a later loss from a run in that layout that never ended. 0: the same bits."
    )
    return section("Resumed in another layout", text, ["from \\ to", *LAYOUTS], lines)


def _resumed(task: TinyTask, before: str, after: str, fault: int) -> float:
    output = task.folder / "resumed"
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(task.folder / f"whole {before}", output)
    for checkpoint in (output / "checkpoint").iterdir():
        if int(checkpoint.name.rpartition("_")[2]) > fault:
            shutil.rmtree(checkpoint)
    train(task, after, "resumed", "--resume_training", "True")
    ours, theirs = rows(output), rows(task.folder / f"whole {after}")
    steps = [step for step in theirs if step > fault]
    return max(abs(ours[step]["loss"] - theirs[step]["loss"]) / theirs[step]["loss"] for step in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--output", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # DCP's, that it is alone
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [
            f"Checkpoints: {describe_machine()}\n",
            speeds(folder, arguments.rounds),
            relaying(folder),
            stalling(),
            surviving(folder, arguments.trials),
            resuming(folder / "runs"),
        ]
    if arguments.output is not None:
        arguments.output.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
