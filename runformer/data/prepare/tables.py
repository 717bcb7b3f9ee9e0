"""Parquet files, and the Arrow files in folders of the datasets library, in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runformer.data.prepare.blocks import BLOCK, Block, Position
from runformer.data.prepare.sources import Source
from runformer.data.prepare.streams import explaining_reads, import_pyarrow
from runformer.errors import DataError

_MAX_ROWS = 1 << 16

Wanted = Callable[[Sequence[str]], list[str]]


def table_blocks(source: Source, start: Position, wanted: Wanted) -> Iterator[Block]:
    """The rows behind ``start``, as small Arrow streams with the columns that ``wanted`` picks from all.

    Raises:
        DataError: the file cannot be read or is damaged, or pyarrow is not installed.
    """
    import_pyarrow("tables")
    read = _parquet_batches if source.kind == "parquet" else _arrow_batches
    number = start.number
    for batch, consumed in read(source, start.offset, wanted):
        rows = max(1, min(_MAX_ROWS, batch.num_rows * BLOCK // max(1, batch.nbytes)))
        for begin in range(0, batch.num_rows, rows):
            part = batch.slice(begin, rows)
            end = Position(start.source, number + part.num_rows, number + part.num_rows)
            yield Block(source.path, source.kind, _to_bytes(part), number + 1, end, consumed)
            number = end.number


def _parquet_batches(source: Source, offset: int, wanted: Wanted) -> Iterator[tuple[Any, int]]:
    from pyarrow import parquet

    with explaining_tables(source.path), source.path.open("rb") as opened, parquet.ParquetFile(opened) as file:
        columns = wanted(file.schema_arrow.names)
        total, before = max(1, file.metadata.num_rows), 0
        for group in range(file.num_row_groups):
            rows, size = file.metadata.row_group(group).num_rows, file.metadata.row_group(group).total_byte_size
            if before + rows > offset:
                batch_size = max(1, min(_MAX_ROWS, rows * BLOCK // max(1, size)))
                at = before
                for batch in file.iter_batches(batch_size, row_groups=[group], columns=columns):
                    passed = max(0, offset - at)
                    at += batch.num_rows
                    if passed < batch.num_rows:
                        yield batch.slice(passed), source.size * at // total
            before += rows


def _arrow_batches(source: Source, offset: int, wanted: Wanted) -> Iterator[tuple[Any, int]]:
    import pyarrow

    with (
        explaining_tables(source.path),
        source.path.open("rb") as opened,
        pyarrow.ipc.open_stream(opened) as reader,
    ):
        columns, at = wanted(reader.schema.names), 0
        for batch in reader:
            passed = max(0, offset - at)
            at += batch.num_rows
            if passed < batch.num_rows:
                yield batch.select(columns).slice(passed), opened.tell()


@contextmanager
def explaining_tables(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises into a message for a person."""
    import pyarrow

    try:
        with explaining_reads(path):
            yield
    except (pyarrow.ArrowException, ValueError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged or cut off: {message}", hint="copy or download it again") from error


def _to_bytes(batch: Any) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def rows_of(data: bytes) -> list[dict[str, Any] | None]:
    """The rows of a small Arrow stream; None for one with a text that is no UTF-8."""
    import pyarrow

    with pyarrow.ipc.open_stream(data) as reader:
        batches = list(reader)
    rows: list[dict[str, Any] | None] = []
    for batch in batches:
        try:
            rows += batch.to_pylist()
        except UnicodeDecodeError:
            rows += [_row(batch, number) for number in range(batch.num_rows)]
    return rows


def _row(batch: Any, number: int) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = batch.slice(number, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return None
    return row
