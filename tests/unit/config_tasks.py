"""Small task files for the tests of the configuration."""

from __future__ import annotations

from pathlib import Path

from runformer.config import Task, load_task

MODEL = """\
model:
  model_config:
    type: LlamaConfig
    vocab_size: 512
    hidden_size: 64
    num_layers: 2
    num_heads: 4
    seq_length: 48
"""
DATA = """\
train_dataset:
  data_loader:
    type: MindDataset
    dataset_dir: rows.mindrecord
"""
MINIMAL = f"run_mode: train\n{DATA}{MODEL}"


def load(folder: Path, text: str = MINIMAL, *arguments: str) -> Task:
    """The Task of a task file with this text, in a folder that holds ``rows.mindrecord`` and is the current one."""
    (folder / "rows.mindrecord").touch()
    (folder / "task.yaml").write_text(text, encoding="utf-8")
    return load_task(["--config", "task.yaml", *arguments])
