"""Small MindRecord files of token rows for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from runformer.data.mindrecord import Column, MindRecordWriter

SMALL: dict[str, Any] = {"header_size": 16 << 10, "page_size": 32 << 10}
ROWS = Column("int32", (-1,))


def write_rows(path: Path, rows: list[list[int]], labels: list[list[int]] | None = None, shards: int = 1) -> Path:
    """Write rows, with labels where they are given; the path of the file, or of the first of several shards."""
    schema = {"input_ids": ROWS} if labels is None else {"input_ids": ROWS, "labels": ROWS}
    with MindRecordWriter(path, schema, shard_num=shards, **SMALL) as writer:
        records = [{"input_ids": np.array(row, dtype="int32")} for row in rows]
        for record, marks in zip(records, labels or [], strict=False):
            record["labels"] = np.array(marks, dtype="int32")
        writer.write(records)
    return path if shards == 1 else path.with_name(f"{path.name}0")
