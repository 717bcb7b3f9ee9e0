"""Task files whose rows come from tables, for the tests of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from config_tasks import MODEL, load

from runformer.config.data_sources import TableFiles
from runformer.config.task import DataOptions, Task
from runformer.errors import ConfigError

FILES = ("a.json", "b.jsonl", "c.csv", "data/x.parquet", "data/y.parquet", "saved/state.json", "tok/vocab.txt")
LENGTH = 48  # of the model
Keys = dict[str, Any]


def text_of(loader: Keys, **dataset: Any) -> str:
    keys = {"data_loader": {"type": "HFDataLoader", **loader}, **dataset}
    written = yaml.safe_dump(keys, default_flow_style=True, width=10_000, sort_keys=False)
    return f"run_mode: train\ntrain_dataset: {written}\n{MODEL}"


def task_of(folder: Path, loader: Keys, *arguments: str, **dataset: Any) -> Task:
    return load(folder, text_of(loader, **dataset), *arguments)


def data_of(folder: Path, loader: Keys, **dataset: Any) -> DataOptions:
    train = task_of(folder, loader, **dataset).train
    assert train is not None
    return train.data


def source_of(folder: Path, loader: Keys) -> TableFiles:
    source = data_of(folder, loader).source
    assert isinstance(source, TableFiles)
    return source


def error_of(folder: Path, loader: Keys, **dataset: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        task_of(folder, loader, **dataset)
    return str(caught.value)
