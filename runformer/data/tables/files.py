"""Opening a table: the library turns files into Arrow files of its cache, and maps those into memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runformer.config.data_sources import TableFiles
from runformer.data.tables.library import explaining, load_library
from runformer.data.tables.table import TableRecords
from runformer.errors import DataError


def open_files(source: TableFiles) -> TableRecords:
    """The rows of the split that a source asks for.

    Raises:
        DataError: a file is not there or damaged; or there is no such split.
    """
    library = load_library()
    name = source_name(source)
    with explaining(name, json_files(source)):
        tables = library.load_from_disk(str(source.paths[0]), **source.arguments) if source.saved else load(source)
    if isinstance(tables, Mapping):
        tables = _split(tables, source, name)
    return TableRecords(tables, name)


def load(source: TableFiles, **arguments: Any) -> Any:
    """What ``datasets.load_dataset`` gives for a source."""
    files = {split: [str(path) for path in paths] for split, paths in source.files.items()}
    path = source.format or str(source.paths[0])
    given = {"data_files": files or None, "split": source.split, **source.arguments, **arguments}
    return load_library().load_dataset(path, **given)


def _split(tables: Mapping[str, Any], source: TableFiles, name: str) -> Any:
    if source.split not in tables:
        hint = "a table that was saved has whole splits; the data handlers take and skip pick rows"
        raise DataError(f"{name} has no split {source.split!r}, but {', '.join(tables)}", hint=hint)
    return tables[source.split]


def source_name(source: TableFiles) -> str:
    """The files of a source as messages name them."""
    first, *others = source.paths
    return f"{first} and {len(others)} more" if others else str(first)


def json_files(source: TableFiles) -> list[Path]:
    """Its files of JSON, for a look at what the library could not read."""
    if source.format != "json" or "field" in source.arguments:
        return []
    return [path for path in source.paths if path.suffix in (".json", ".jsonl")]
