"""A tiny task on disk, and the command run on it as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runformer.data.megatron import IndexedWriter
from runformer.data.mindrecord import Column, MindRecordWriter

CONFIG = """
seed: 7
run_mode: train
use_parallel: False
output_dir: ./output
trainer: {type: CausalLanguageModelingTrainer, model_name: tiny}
runner_config: {epochs: 2, batch_size: 2, sink_mode: False}
runner_wrapper: {type: MFTrainOneStepCell, scale_sense: 1.0, use_clip_grad: True, max_grad_norm: 1.0}
optimizer: {type: AdamW, betas: [0.9, 0.95], eps: 1.e-8, weight_decay: 0.1}
lr_schedule: {type: CosineWithWarmUpLR, learning_rate: 3.e-3, lr_end: 1.e-4, warmup_steps: 2, total_steps: -1}
train_dataset: &train_dataset
  data_loader: {type: MindDataset, dataset_dir: data.mindrecord, shuffle: True}
  input_columns: [input_ids, labels]
  drop_remainder: True
train_dataset_task: {type: CausalLanguageModelDataset, dataset_config: *train_dataset}
callbacks:
  - type: MFLossMonitor
  - {type: CheckpointMonitor, prefix: tiny, save_checkpoint_steps: 3, keep_checkpoint_max: 10}
context: {mode: 1, device_target: CPU}
model:
  model_config:
    type: LlamaConfig
    seq_length: 16
    hidden_size: 32
    intermediate_size: 48
    num_layers: 2
    num_heads: 4
    n_kv_heads: 2
    vocab_size: 64
    pad_token_id: 0
    compute_dtype: float32
    param_init_type: float32
  arch: {type: LlamaForCausalLM}
"""
ROWS = 20  # 10 steps an epoch


@dataclass(frozen=True)
class TinyTask:
    """A folder with ``config.yaml`` and ``data.mindrecord``."""

    repository: Path
    folder: Path

    def command(self, *arguments: str) -> list[str]:
        script = str(self.repository / "run_mindformer.py")
        return [sys.executable, script, "--config", "config.yaml", *arguments]

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def rows(self, output: str = "output") -> list[dict[str, Any]]:
        lines = (self.folder / output / "training.jsonl").read_text().splitlines()
        return list({row["step"]: row for row in map(json.loads, lines)}.values())


def make_tiny_task(repository: Path, folder: Path) -> TinyTask:
    """The task, fresh, in an empty folder."""
    (folder / "config.yaml").write_text(CONFIG)
    random = np.random.default_rng(0)
    columns = {"input_ids": Column("int32", (-1,)), "labels": Column("int32", (-1,))}
    with MindRecordWriter(folder / "data.mindrecord", columns) as writer:
        for row in range(ROWS):
            tokens = random.integers(1, 64, 17, dtype=np.int32)
            # Every other row counts for little: ranks then have very different numbers of tokens.
            labels = np.where(random.random(17) < (0.3, 0.9)[row % 2], -100, tokens).astype(np.int32)
            writer.write([{"input_ids": tokens, "labels": labels}])
    return TinyTask(repository, folder)


MEGATRON_LOADER = """
  data_loader:
    type: BlendedMegatronDatasetDataLoader
    datasets_type: GPTDataset
    sizes: [20, 4, 0]
    config: {seed: 5, split: "8, 2, 0", seq_length: 16, eod: 1, pad: -1, data_path: ['0.3', one, '0.7', two]}
  input_columns: [input_ids, labels, loss_mask, position_ids, attention_mask]
"""


def make_megatron_task(repository: Path, folder: Path) -> TinyTask:
    """The tiny task with two indexed datasets in place of its MindRecord file."""
    mindrecord = """
  data_loader: {type: MindDataset, dataset_dir: data.mindrecord, shuffle: True}
  input_columns: [input_ids, labels]
"""
    assert mindrecord in CONFIG
    (folder / "config.yaml").write_text(CONFIG.replace(mindrecord, MEGATRON_LOADER))
    random = np.random.default_rng(1)
    for name, documents in (("one", 9), ("two", 30)):
        with IndexedWriter(folder / name) as writer:
            for length in random.integers(2, 40, documents):
                writer.add([*random.integers(2, 64, length), 1])
    return TinyTask(repository, folder)
