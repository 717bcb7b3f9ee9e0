"""How long steps take while checkpoints are written: our command without saving, waiting for it, and going on."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from common import REPOSITORY

STEPS, EVERY = 49, 12
CONFIG = """\
run_mode: train
output_dir: ./output
model:
  model_config: {{type: LlamaConfig, vocab_size: 49152, hidden_size: 576, intermediate_size: 1536, num_layers: 30,
    num_heads: 9, n_kv_heads: 3, seq_length: 128, tie_word_embeddings: True, compute_dtype: bfloat16,
    param_init_type: float32}}
runner_config: {{epochs: 1, batch_size: 1}}
train_dataset:
  data_loader: {{type: MindDataset, dataset_dir: rows.mindrecord, shuffle: False}}
  input_columns: [input_ids]
callbacks: [{saving}]
"""
SAVING = "{{type: CheckpointMonitor, save_checkpoint_steps: {every}, keep_checkpoint_max: 1, async_save: {behind}}}"
PROGRAM = """
import json, sys, time
from runformer.cli.main import main
from runformer.train.step import TrainStep
began, call = [], TrainStep.__call__
def timed(self, *arguments):
    began.append(time.perf_counter())
    return call(self, *arguments)
TrainStep.__call__ = timed
code = main(sys.argv[1:])
json.dump([b - a for a, b in zip(began, began[1:])], open("times.json", "w"))
sys.exit(code)
"""


def stalls() -> dict[str, list[float]]:
    """Seconds from step to step, without the first ones, and without the end, where a run waits for its last save."""
    import json

    found = {}
    for name, saving in {
        "off": "",
        "in its way": SAVING.format(every=EVERY, behind=False),
        "behind (async_save)": SAVING.format(every=EVERY, behind=True),
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            _write_task(Path(folder), saving)
            command = [sys.executable, "-c", PROGRAM, "--config", "config.yaml"]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, env=_environment())
            found[name] = json.loads((Path(folder) / "times.json").read_text())[2:]
    return found


def _write_task(folder: Path, saving: str) -> None:
    import numpy as np

    from runformer.data.mindrecord import Column, MindRecordWriter

    (folder / "config.yaml").write_text(CONFIG.format(saving=saving))
    tokens = np.random.default_rng(0)
    with MindRecordWriter(folder / "rows.mindrecord", {"input_ids": Column("int32", (-1,))}) as writer:
        writer.write([{"input_ids": tokens.integers(0, 49152, 129, dtype=np.int32)} for _ in range(STEPS)])


def _environment() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": str(REPOSITORY)}
