"""Rows → a MindRecord file, or documents → Megatron's two files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from runformer.data.formats import Stage
from runformer.data.megatron.writer import IndexedWriter
from runformer.data.mindrecord import Column, MindRecordWriter
from runformer.data.prepare.encode import Samples
from runformer.data.prepare.options import PrepareOptions
from runformer.data.prepare.rows import (
    Row,
    RowCounts,
    batches,
    documents,
    packed_rows,
    padded_rows,
    stream_rows,
)

_BATCH = 1 << 21  # tokens that are written at a time


def columns_of(options: PrepareOptions, stage: Stage) -> tuple[str, ...]:
    """The columns of the MindRecord file."""
    if stage == "pretrain":
        return ("input_ids",)
    if options.pack:
        return ("input_ids", options.label_column, "actual_seq_len")
    mask = ("attention_mask",) if options.label_column == "target_ids" else ()
    return ("input_ids", options.label_column, *mask)


def output_files(options: PrepareOptions) -> list[Path]:
    """The files that are made, without the indexes of MindRecord files."""
    if options.to == "megatron":
        prefix = options.megatron_prefix
        return [prefix.with_name(f"{prefix.name}.bin"), prefix.with_name(f"{prefix.name}.idx")]
    if options.shards == 1:
        return [options.output]
    digits = len(str(options.shards - 1))
    return [options.output.with_name(f"{options.output.name}{n:0{digits}}") for n in range(options.shards)]


def write_mindrecord(
    path: Path, chunks: Iterable[Samples], options: PrepareOptions, stage: Stage, pad: int, counts: RowCounts
) -> None:
    """Write all rows.

    Raises:
        DataError: the file cannot be written.
    """
    schema = {name: Column("int32", (-1,)) for name in columns_of(options, stage)}
    # Where pages begin hangs on how many rows come at a time, so that hangs on nothing else.
    size = max(1, min(1000, _BATCH // options.row_length))
    with MindRecordWriter(path, schema, shard_num=options.shards) as writer:
        rows = islice(_rows(chunks, options, stage, pad, counts), options.max_rows)
        for batch in batches(rows, size):
            writer.write(batch)


def _rows(
    chunks: Iterable[Samples], options: PrepareOptions, stage: Stage, pad: int, counts: RowCounts
) -> Iterator[Row]:
    if stage == "pretrain":
        return stream_rows(chunks, options.row_length, pad, options.pad_last_row, counts)
    make: Callable[..., Iterator[Row]] = packed_rows if options.pack else padded_rows
    return make(chunks, options.row_length, pad, options.label_column, counts)


def write_megatron(prefix: Path, chunks: Iterable[Samples], counts: RowCounts) -> None:
    """Write a document a sample.

    Raises:
        DataError: the files cannot be written.
    """
    with IndexedWriter(prefix, np.dtype(np.int32)) as writer:
        for tokens, _ in documents(chunks):
            writer.add(tokens)
            counts.documents += 1
            counts.tokens += len(tokens)
    counts.rows = counts.documents
