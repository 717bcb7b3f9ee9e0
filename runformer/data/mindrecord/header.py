"""The header of a MindRecord data file: ``u64 length | JSON | zeros`` up to ``header_size``, then the pages."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runformer.data.mindrecord.schema import Column, Schema, blob_columns, check_names, raw_columns

BLOB = "BLOB_DATA"
RAW = "RAW_DATA"
VERSIONS = ("2.0", "3.0")  # 2.0 keeps integer arrays plain, 3.0 packs them
_LARGEST_PAGE = 1 << 28  # bytes
LENGTH = struct.Struct("<Q")  # before the header's JSON and before every record


@dataclass(slots=True)
class Page:
    """One page. ``used`` counts its bytes; a blob page holds rows ``start_row <= row < end_row``.

    ``row_groups`` of a raw page are (number of the blob page by its own count, offset in bytes).
    """

    page_id: int
    kind: str
    page_type_id: int
    start_row: int = 0
    end_row: int = 0
    used: int = 0
    row_groups: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Header:
    """What a data file says about itself. Sizes are bytes; ``compression_size`` is what packing saved."""

    header_size: int
    page_size: int
    compression_size: int
    schema: Schema
    description: str
    shard_names: tuple[str, ...]
    shard_id: int
    version: str
    pages: tuple[Page, ...]

    @property
    def blob_pages(self) -> list[Page]:
        """The blob pages in the order of their rows."""
        return sorted((page for page in self.pages if page.kind == BLOB), key=lambda page: page.page_type_id)

    @property
    def rows(self) -> int:
        """The number of records in this data file."""
        return sum(page.end_row - page.start_row for page in self.pages if page.kind == BLOB)

    def page_begin(self, page_id: int) -> int:
        """Where a page begins in the file, in bytes."""
        return self.header_size + page_id * self.page_size


def dump_header(header: Header) -> bytes:
    """The header as MindSpore writes it, byte for byte, without the zeros after it."""
    fields = [{"index_field": name, "schema_id": 0} for name in raw_columns(header.schema)]
    document = {
        "header_size": header.header_size,
        "index_fields": fields or None,
        "page": [_page_entry(page, header.shard_id) for page in header.pages] or None,
        "page_size": header.page_size,
        "compression_size": header.compression_size,
        "schema": [_schema_entry(header)],
        "shard_addresses": list(header.shard_names),
        "shard_id": header.shard_id,
        "statistics": None,
        "version": header.version,
    }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return LENGTH.pack(len(text)) + text


def _page_entry(page: Page, shard_id: int) -> dict[str, Any]:
    groups = page.row_groups or [(0, 0)]  # MindSpore's way to write "none"
    return {
        "end_row_id": page.end_row,
        "page_id": page.page_id,
        "page_size": page.used,
        "page_type": page.kind,
        "page_type_id": page.page_type_id,
        "row_group_ids": [{"id": group, "offset": offset} for group, offset in groups],
        "shard_id": shard_id,
        "start_row_id": page.start_row,
    }


def _schema_entry(header: Header) -> dict[str, Any]:
    columns: dict[str, dict[str, Any]] = {}
    for name, column in sorted(header.schema.items()):
        shape = {} if column.shape is None else {"shape": list(column.shape)}
        columns[name] = {**shape, "type": column.type}
    return {"blob_fields": blob_columns(header.schema), "desc": header.description, "schema": columns}


def parse_header(text: bytes, file_size: int) -> Header:
    """Read the JSON of a header and check that its pages lie inside a file of ``file_size`` bytes.

    Raises:
        ValueError: it is no header of MindRecord, or does not fit the file; the message says where.
    """
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ValueError("the header is nested too deeply") from error
    except ValueError as error:
        raise ValueError("the header is not JSON") from error
    top = _mapping(document, "the header")
    version = _text(top, "version")
    if version not in VERSIONS:
        raise ValueError(f"version {version!r} is not known (2.0 and 3.0 are)")
    header_size = _integer(top, "header_size", LENGTH.size + len(text))
    page_size = _integer(top, "page_size", LENGTH.size)
    schema, description = _parse_schema(_list(top, "schema"))
    names = tuple(_base_name(name) for name in _list(top, "shard_addresses"))
    pages = [] if top.get("page") is None else [_parse_page(entry) for entry in _list(top, "page")]
    header = Header(
        header_size=header_size,
        page_size=page_size,
        compression_size=_integer(top, "compression_size") if "compression_size" in top else 0,
        schema=schema,
        description=description,
        shard_names=names,
        shard_id=_integer(top, "shard_id", 0, len(names) - 1),
        version=version,
        pages=tuple(pages),
    )
    _check_pages(header, file_size)
    return header


def _parse_schema(entries: Sequence[Any]) -> tuple[dict[str, Column], str]:
    if len(entries) != 1:
        raise ValueError(f"the header has {len(entries)} schemas, not one")
    entry = _mapping(entries[0], "schema")
    described = _mapping(entry.get("schema"), "schema.schema")
    check_names(described)
    schema = {name: _parse_column(name, value) for name, value in sorted(described.items())}
    if sorted(map(str, _list(entry, "blob_fields"))) != blob_columns(schema):
        raise ValueError("'blob_fields' does not agree with the types of the columns")
    return schema, str(entry.get("desc", ""))


def _parse_column(name: str, value: Any) -> Column:
    entry = _mapping(value, f"column {name!r}")
    shape = None
    if "shape" in entry:
        shape = tuple(_whole(size, f"shape of {name!r}") for size in _list(entry, "shape"))
    return Column(_text(entry, "type"), shape)


def _parse_page(value: Any) -> Page:
    entry = _mapping(value, "page")
    kind = _text(entry, "page_type")
    if kind not in (BLOB, RAW):
        raise ValueError(f"page_type {kind!r} is neither {BLOB} nor {RAW}")
    groups = [_mapping(group, "row_group_ids") for group in _list(entry, "row_group_ids")]
    start_row = _integer(entry, "start_row_id")
    return Page(
        page_id=_integer(entry, "page_id"),
        kind=kind,
        page_type_id=_integer(entry, "page_type_id"),
        start_row=start_row,
        end_row=_integer(entry, "end_row_id", start_row),
        used=_integer(entry, "page_size"),
        row_groups=[(_integer(group, "id"), _integer(group, "offset")) for group in groups],
    )


def _check_pages(header: Header, file_size: int) -> None:
    if [page.page_id for page in header.pages] != list(range(len(header.pages))):
        raise ValueError("the pages are not numbered 0, 1, 2, …")
    for page in header.pages:
        end = header.page_begin(page.page_id) + page.used
        if page.used > header.page_size:
            raise ValueError(f"page {page.page_id} says {page.used} bytes, more than its size {header.page_size}")
        if page.used > _LARGEST_PAGE:
            raise ValueError(f"page {page.page_id} says {page.used} bytes, more than the format's {_LARGEST_PAGE}")
        if end > file_size:
            raise ValueError(
                f"page {page.page_id} ends at byte {end}, but the file has only {file_size}: it is cut off"
            )
    row = 0
    for number, page in enumerate(header.blob_pages):
        # A record takes at least its length prefix, so this bounds what a damaged header can make us allocate.
        if page.page_type_id != number or page.start_row != row or page.used < LENGTH.size * (page.end_row - row):
            raise ValueError(f"the rows of page {page.page_id} ({page.start_row} to {page.end_row}) cannot be")
        row = page.end_row


def _base_name(value: Any) -> str:
    if not isinstance(value, str) or value in ("", ".", "..") or "/" in value or "\\" in value or "\0" in value:
        raise ValueError(f"'shard_addresses' holds {value!r}, which is not the name of a file")
    return value


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} should be a JSON object")
    return value


def _list(entry: Mapping[str, Any], key: str) -> list[Any]:
    value = entry.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{key!r} should be a list")
    return value


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key!r} should be a text")
    return value


def _integer(entry: Mapping[str, Any], key: str, minimum: int = 0, maximum: int = 2**62) -> int:
    value = _whole(entry.get(key), key)
    if not minimum <= value <= maximum:
        raise ValueError(f"{key!r} is {value}, outside {minimum} to {maximum}")
    return value


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{what!r} should be a whole number")
    return value
