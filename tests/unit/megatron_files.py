"""Small indexed datasets, and the options to read them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from runformer.config.task import MegatronFiles
from runformer.data.megatron import IndexedWriter


def write_dataset(prefix: Path, lengths: Iterable[int], dtype: Any = np.int32) -> Path:
    """Documents of these lengths; tokens count up from 10."""
    begin = 10
    with IndexedWriter(prefix, dtype, overwrite=True) as writer:
        for length in lengths:
            writer.add(np.arange(begin, begin + length) % 50000)
            begin += length
    return prefix


def files(
    names: Iterable[str | Path], weights: tuple[float, ...] | None = None, size: int | None = None, **others: Any
) -> MegatronFiles:
    """As a task file would have it, with paths as they are."""
    names = tuple(map(str, names))
    settings = {"sequence_length": 8, "split": "1, 0, 0"} | others
    return MegatronFiles(tuple(map(Path, names)), names, weights, size, **settings)
