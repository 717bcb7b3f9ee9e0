"""Rows that are read from files one after the other, and never written to the library's cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

from runformer.config.data_sources import TableFiles
from runformer.data.records import Records
from runformer.data.tables.files import json_files, load, source_name
from runformer.data.tables.library import explaining
from runformer.data.tables.table import require_columns
from runformer.errors import DataError

_BLOCK = 1 << 20


def open_stream(source: TableFiles) -> StreamRecords:
    """The rows of a source as a stream.

    Raises:
        DataError: a file is not there or damaged; or how many rows there are is neither said nor to be seen.
    """
    name, files = source_name(source), json_files(source)
    with explaining(name, files):
        stream = load(source, streaming=True)
        rows = _count(source) if source.rows is None else source.rows
        columns = stream.column_names or list(next(iter(stream.take(1)), {}))
    if rows is None:
        raise DataError(
            f"{name}: how many rows it has cannot be seen without reading all of it",
            hint="say it: size of the data_loader; or leave out streaming",
        )
    return StreamRecords(stream, rows, columns, name, files)


class StreamRecords(Records):
    """Numbered rows of a stream that only goes forward.

    The next row costs least, one further on has those before it read and dropped, and an earlier one begins the files
    again: that is right at any number, and fast in the order of the files.

    Args:
        stream: a ``datasets.IterableDataset``.
        rows: how many rows it has.
        columns: their columns.
        name: its files, for messages.
        files: those of JSON.
    """

    def __init__(self, stream: Any, rows: int, columns: Sequence[str], name: str, files: Sequence[Path]) -> None:
        self._stream = stream
        self._rows = rows
        self._columns = list(columns)
        self.name = name
        self._files = files
        self._lock = Lock()
        self._last: tuple[int, Mapping[str, Any]] = (-1, {})
        self._rest: Iterator[Mapping[str, Any]] | None = None

    @property
    def column_names(self) -> Sequence[str]:
        """Those of the files."""
        return self._columns

    def __len__(self) -> int:
        return self._rows

    def describe(self, record: int) -> str:
        """The files, and the row counted from 0."""
        return f"{self.name}, row {record}"

    def read_columns(self, record: int, columns: Sequence[str]) -> dict[str, Any]:
        """As ``Records``.

        Raises:
            DataError: also if the files end before this row.
        """
        require_columns(self, columns)
        with self._lock, explaining(self.describe(record), self._files):
            row = self._row(int(record))
        return {name: row.get(name) for name in columns}

    def _row(self, record: int) -> Mapping[str, Any]:
        number, row = self._last
        if record == number:
            return row
        if self._rest is None or record < number:
            number, self._rest = -1, iter(self._stream)
        found: Mapping[str, Any] | None = next(islice(self._rest, record - number - 1, None), None)
        if found is None:
            self._last, self._rest = (-1, {}), None
            raise DataError(
                f"{self.name} ends before row {record}", hint="size of the data_loader says how many it has"
            )
        self._last = (record, found)
        return found


def _count(source: TableFiles) -> int | None:
    """The rows of all files of the split where that takes no more than a look at them; else None."""
    counter = _COUNTERS.get(source.format or "")
    if counter is None or set(source.arguments) - {"cache_dir", "num_proc", "name"}:
        return None
    counts = [counter(path) for path in source.files.get(source.split, ())]
    return None if any(count is None for count in counts) else sum(count for count in counts if count is not None)


def _parquet_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _arrow_rows(path: Path) -> int:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            return sum(batch.num_rows for batch in pa.ipc.open_stream(source))
        except pa.ArrowInvalid:
            file = pa.ipc.open_file(source)
            return sum(file.get_batch(number).num_rows for number in range(file.num_record_batches))


def _json_lines(path: Path) -> int | None:
    if path.suffix not in (".json", ".jsonl"):
        return None  # packed, perhaps
    with path.open("rb") as file:
        if file.read(_BLOCK).lstrip()[:1] == b"[":
            return None
        file.seek(0)
        return sum(1 for line in file if line.strip())


def _text_lines(path: Path) -> int | None:
    if path.suffix in (".gz", ".bz2", ".xz", ".zst", ".lz4"):
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        return sum(1 for _ in file)


_COUNTERS = {"parquet": _parquet_rows, "arrow": _arrow_rows, "json": _json_lines, "text": _text_lines}
