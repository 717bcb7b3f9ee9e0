"""Time from the command to the end of the first training step of a tiny model: ours against Hugging Face's Trainer.

    python benchmarks/startup.py --rounds 5 --output benchmarks/startup.md

Both are started alternately as processes of their own; the clock runs from the start of the process to its line that
reports the first step.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import REPOSITORY, describe_machine, write_table
from train import CONFIG

TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LENGTH, BATCH = 48, 4
FIRST_STEP = "first step done"


def prepare(folder: Path) -> None:
    """Four steps' rows and our configuration."""
    from runformer.data.mindrecord import Column, MindRecordWriter

    rows = np.random.default_rng(0).integers(0, TINY["vocab_size"], (4 * BATCH, LENGTH + 1), dtype=np.int32)
    with MindRecordWriter(folder / "data.mindrecord", {"input_ids": Column("int32", (-1,))}) as writer:
        writer.write([{"input_ids": row} for row in rows])
    (folder / "tiny.yaml").write_text(CONFIG.format(**TINY, batch=BATCH, length=LENGTH, dtype="float32"))


def peer() -> None:
    """Train one step with Trainer and say when it is done; runs in the child."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Reporter(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            print(FIRST_STEP, flush=True)

    data = [{"input_ids": row, "labels": row} for row in torch.randint(TINY["vocab_size"], (BATCH, LENGTH))]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(LlamaForCausalLM(LlamaConfig(**TINY)), arguments, train_dataset=data, callbacks=[Reporter()]).train()


def seconds_until(command: list[str], words: str, folder: Path) -> float:
    """Time from the start of a process to its first line with ``words``; the process is then left to end."""
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if words in line:
                seconds = time.perf_counter() - started
                process.communicate(timeout=120)
                return seconds
    raise RuntimeError(f"{command} ended without {words!r}:\n{''.join(lines)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        peer()
        return
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        command = [sys.executable, str(REPOSITORY / "run_mindformer.py"), "--config", "tiny.yaml"]
        for number in range(arguments.rounds):
            output = ["--output_dir", f"output_{number}"]
            times["ours"].append(seconds_until([*command, *output], "step:[    1/", folder))
            times["peer"].append(seconds_until([sys.executable, __file__, "--peer"], FIRST_STEP, folder))
            print({side: round(values[-1], 2) for side, values in times.items()}, flush=True)
    ours, theirs = (statistics.median(values) for values in times.values())
    title = f"Command to the end of the first step, tiny model: {arguments.rounds} rounds, {describe_machine()}"
    row = [f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.2f}"]
    write_table(title, ["ours s", "Trainer s", "ratio"], [row], arguments.output)


if __name__ == "__main__":
    main()
