"""Training speed and peak memory: our command against Hugging Face's Trainer, alternately, on this machine.

    python benchmarks/train.py --rounds 3 --output benchmarks/train.md

    python benchmarks/train.py --device cuda --shape Qwen2.5-0.5B --length 2048 --batch 8 --steps 20

Both sides train a randomly initialised model (AdamW, clip 1.0) on the same random rows, each in a process of its
own, one after the other, several rounds. A figure is the median over rounds of the median over steps; memory is the
process's peak resident size, on a GPU the most that its tensors took. Ours is what ``run_mindformer.py`` writes into
``training.jsonl``; the peer's comes from a callback around its steps.

With ``--preload libtcmalloc_minimal.so.4`` both sides run with that allocator instead of the C library's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import COMMON_SHAPE, REPOSITORY, SHAPES, describe_machine, peak_rss_bytes, write_table

WARM_UP_STEPS = 3

CONFIG = """
seed: 42
run_mode: train
use_parallel: False
trainer: {{type: CausalLanguageModelingTrainer, model_name: benchmark}}
runner_config: {{epochs: 1, batch_size: {batch}, sink_mode: True}}
runner_wrapper: {{type: MFTrainOneStepCell, scale_sense: 1.0, use_clip_grad: True, max_grad_norm: 1.0}}
optimizer: {{type: AdamW, betas: [0.9, 0.999], eps: 1.e-8, weight_decay: 0.0}}
lr_schedule: {{type: ConstantWarmUpLR, learning_rate: 5.e-5, warmup_steps: 0}}
train_dataset: &train_dataset
  data_loader: {{type: MindDataset, dataset_dir: data.mindrecord, shuffle: False}}
  input_columns: ["input_ids"]
  drop_remainder: True
train_dataset_task: {{type: CausalLanguageModelDataset, dataset_config: *train_dataset}}
callbacks:
  - type: MFLossMonitor
context: {{mode: 0, device_target: {target}}}
model:
  model_config:
    type: LlamaConfig
    seq_length: {length}
    vocab_size: {vocab_size}
    hidden_size: {hidden_size}
    intermediate_size: {intermediate_size}
    num_layers: {num_hidden_layers}
    num_heads: {num_attention_heads}
    n_kv_heads: {num_key_value_heads}
    max_position_embedding: {max_position_embeddings}
    rms_norm_eps: 1.0e-5
    theta: 100000.0
    tie_word_embeddings: True
    pad_token_id: -1
    compute_dtype: {dtype}
    param_init_type: float32
  arch: {{type: LlamaForCausalLM}}
"""


@dataclass(frozen=True)
class Case:
    """What both sides train: a model of ``SHAPES`` on rows of ``length`` tokens."""

    shape: str
    length: int
    batch: int
    steps: int
    device: str

    @property
    def sizes(self) -> dict[str, Any]:
        """The model's shape, by Hugging Face's names."""
        return SHAPES[self.shape] | COMMON_SHAPE


def prepare(folder: Path, case: Case) -> None:
    """The rows, as MindRecord for us and as an array for the peer, and our two configurations."""
    from runformer.data.mindrecord import Column, MindRecordWriter

    shape = (case.steps * case.batch, case.length + 1)
    rows = np.random.default_rng(0).integers(0, case.sizes["vocab_size"], shape, dtype=np.int32)
    np.save(folder / "data.npy", rows)
    with MindRecordWriter(folder / "data.mindrecord", {"input_ids": Column("int32", (-1,))}) as writer:
        writer.write([{"input_ids": row} for row in rows])
    for dtype in ("float32", "bfloat16"):
        target = {"cpu": "CPU", "cuda": "GPU"}[case.device]
        text = CONFIG.format(**case.sizes, batch=case.batch, length=case.length, dtype=dtype, target=target)
        (folder / f"{dtype}.yaml").write_text(text)


def run_ours(folder: Path, precision: str) -> dict[str, float]:
    """One run of the command; tokens a second and peak bytes."""
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    output = folder / f"output-{time.time_ns()}"
    command = [sys.executable, str(REPOSITORY / "run_mindformer.py"), "--config", f"{dtype}.yaml"]
    subprocess.run(
        [*command, "--output_dir", str(output)], cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=1800
    )
    rows = [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()]
    speed = statistics.median(row["tokens_per_second"] for row in rows[WARM_UP_STEPS:])
    return {"tokens_per_second": speed, "peak_bytes": rows[-1]["peak_memory_bytes"]}


def run_peer(folder: Path, precision: str, case: Case) -> dict[str, float]:
    """The same with Hugging Face's Trainer, in a process of its own."""
    command = [sys.executable, __file__, "--peer", precision, "--folder", str(folder), "--shape", case.shape]
    command += ["--batch", str(case.batch), "--length", str(case.length), "--device", case.device]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=1800)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def peer(folder: Path, precision: str, case: Case) -> None:
    """Train with Trainer and print figures as JSON; runs in the child."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    rows = torch.from_numpy(np.load(folder / "data.npy")[:, : case.length]).long()
    config = LlamaConfig(**case.sizes, rope_parameters={"rope_type": "default", "rope_theta": 1e5}, use_cache=False)
    arguments = TrainingArguments(
        output_dir=str(folder / "peer"),
        per_device_train_batch_size=case.batch,
        num_train_epochs=1,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        bf16=precision == "bf16",
        use_cpu=case.device == "cpu",
        disable_tqdm=True,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(LlamaForCausalLM(config), arguments, train_dataset=data, callbacks=[Clock()]).train()
    seconds = statistics.median(np.diff(times[WARM_UP_STEPS - 1 :]))
    peak = peak_rss_bytes() if case.device == "cpu" else torch.cuda.max_memory_allocated()
    print(json.dumps({"tokens_per_second": case.batch * case.length / seconds, "peak_bytes": peak}))


def measure(rounds: int, case: Case, precisions: list[str]) -> dict[str, list[dict[str, float]]]:
    """All variants in turn, every round."""
    figures: dict[str, list[dict[str, float]]] = {f"{p} {side}": [] for p in precisions for side in ("ours", "peer")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, case)
        for number in range(rounds):
            for variant in figures:
                precision, side = variant.split()
                result = run_ours(folder, precision) if side == "ours" else run_peer(folder, precision, case)
                figures[variant].append(result)
                print(f"round {number + 1} {variant}: {result}", flush=True)
    return figures


def table(figures: dict[str, list[dict[str, float]]], precisions: list[str]) -> list[list[str]]:
    """Medians and ratios, a row a precision."""

    def median(variant: str, key: str) -> float:
        return statistics.median(row[key] for row in figures[variant])

    rows = []
    base = median(f"{precisions[0]} peer", "tokens_per_second")
    for precision in precisions:
        ours, theirs = (median(f"{precision} {side}", "tokens_per_second") for side in ("ours", "peer"))
        our_memory, their_memory = (median(f"{precision} {side}", "peak_bytes") / 2**20 for side in ("ours", "peer"))
        rows.append(
            [
                precision,
                f"{ours:.0f}",
                f"{theirs:.0f}",
                f"{ours / theirs:.2f}",
                f"{ours / base:.2f}",
                f"{our_memory:.0f}",
                f"{their_memory:.0f}",
                f"{our_memory / their_memory:.2f}",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--shape", choices=SHAPES, default="SmolLM2-135M")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--preload", default="", help="an allocator's library, for both sides")
    parser.add_argument("--peer", choices=("fp32", "bf16"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    case = Case(arguments.shape, arguments.length, arguments.batch, arguments.steps, arguments.device)
    if arguments.peer:
        peer(arguments.folder, arguments.peer, case)
        return
    base = f"ratio to Trainer {arguments.precisions[0]}"
    head = ["", "ours tokens/s", "Trainer", "ratio", base, "ours MiB", "Trainer MiB", "ratio"]
    title = f"Training {case.shape}, sequence {case.length}, batch {case.batch}: {arguments.rounds} rounds"
    title += f", {describe_machine(case.device)}"
    if arguments.preload:
        title += f", both with {arguments.preload}"
        os.environ["LD_PRELOAD"] = arguments.preload
    figures = measure(arguments.rounds, case, arguments.precisions)
    write_table(title, head, table(figures, arguments.precisions), arguments.output)


if __name__ == "__main__":
    main()
