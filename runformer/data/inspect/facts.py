"""What the files of a dataset say about themselves: kind, columns, shards, pages, sizes."""

from __future__ import annotations

from pathlib import Path

from runformer.data.inspect.indexed import IndexedDocuments
from runformer.data.mindrecord import MindRecordReader
from runformer.data.mindrecord.header import BLOB, RAW, Header
from runformer.data.mindrecord.index import index_path
from runformer.data.mindrecord.reader import read_header
from runformer.data.mindrecord.schema import Column
from runformer.data.records import Records

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SHARDS_SHOWN = 16


def facts(records: Records) -> list[tuple[str, str]]:
    """(What, how it is) of a dataset, in the order to be shown; several lines with the same "what" may follow."""
    if isinstance(records, MindRecordReader):
        return _of_mindrecord(records)
    if isinstance(records, IndexedDocuments):
        return _of_indexed(records)
    return [("records", f"{len(records):,}"), ("columns", ", ".join(records.column_names))]


def size_text(size: float) -> str:
    """A number of bytes for people."""
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if size == int(size) else f"{size:.1f} {unit}"


def column_text(column: Column) -> str:
    """A column's type and shape."""
    return column.type if column.shape is None else f"{column.type} {list(column.shape)}"


def _of_mindrecord(records: MindRecordReader) -> list[tuple[str, str]]:
    headers = [read_header(path) for path in records.paths]
    first = headers[0]
    integers = "packed" if first.version != "2.0" else "plain"
    lines = [
        ("format", f"MindRecord {first.version}, integer arrays {integers}"),
        ("records", f"{len(records):,}"),
    ]
    if first.description:
        lines.append(("description", first.description))
    lines += [("column", f"{name}: {column_text(column)}") for name, column in records.schema.items()]
    lines.append(("pages", f"of {size_text(first.page_size)}, after a header of {size_text(first.header_size)}"))
    saved = first.compression_size  # each shard tells that of all
    if saved:
        lines.append(("saved", f"{size_text(saved)} by packing integers"))
    shown = list(zip(records.paths, headers, strict=True))[:_SHARDS_SHOWN]
    lines += [("file", _file_text(path, header)) for path, header in shown]
    if len(headers) > len(shown):
        lines.append(("file", f"… and {len(headers) - len(shown)} more"))
    return lines


def _file_text(path: Path, header: Header) -> str:
    kinds = [page.kind for page in header.pages]
    pages = f"{kinds.count(BLOB)} + {kinds.count(RAW)} pages"
    about = path.stat()
    size = size_text(about.st_size)
    on_disk = about.st_blocks * 512  # POSIX's unit; holes take no space
    if on_disk < about.st_size:
        size += f" ({size_text(on_disk)} on disk)"
    index = index_path(path)
    indexed = f"index of {size_text(index.stat().st_size)}" if index.exists() else "no index"
    shard = f"shard {header.shard_id} of {len(header.shard_names)}, " if len(header.shard_names) > 1 else ""
    return f"{path.name}: {shard}{header.rows:,} records, {size}, {pages} of arrays and of scalars, {indexed}"


def _of_indexed(records: IndexedDocuments) -> list[tuple[str, str]]:
    dataset = records.dataset
    lines = [
        ("format", f"Megatron-LM's indexed dataset, tokens are {dataset.dtype}"),
        ("records", f"{len(records):,} documents of {len(dataset):,} sequences"),
        ("tokens", f"{len(dataset.tokens):,}"),
    ]
    if dataset.modes is not None:
        lines.append(("modes", "each sequence has one: the dataset is multimodal"))
    return [*lines, *(("file", f"{path.name}: {size_text(path.stat().st_size)}") for path in records.paths)]
