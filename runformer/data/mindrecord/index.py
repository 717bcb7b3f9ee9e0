"""The SQLite index beside a data file (``NAME.db``): it opens large files at once, and MindSpore needs it."""

from __future__ import annotations

import mmap
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from runformer.data.mindrecord.header import LENGTH, Header
from runformer.data.mindrecord.records import decode_raw
from runformer.data.mindrecord.rows import Places, RowGroup, row_groups, scan_blob, scan_raw
from runformer.data.mindrecord.schema import FLOATS, INTEGERS, raw_columns

# MindSpore's own text, spaces included: files are compared with its files.
_CREATE_INDEXES = (
    "CREATE TABLE INDEXES("
    "  ROW_ID               INT  NOT NULL, PAGE_ID_RAW          INT  NOT NULL,"
    " PAGE_OFFSET_RAW      INT  NOT NULL, PAGE_OFFSET_RAW_END  INT  NOT NULL,"
    " ROW_GROUP_ID         INT  NOT NULL, PAGE_ID_BLOB         INT  NOT NULL,"
    " PAGE_OFFSET_BLOB     INT  NOT NULL, PAGE_OFFSET_BLOB_END INT  NOT NULL,"
)
_CREATE_SHARD_NAME = "CREATE TABLE SHARD_NAME(NAME TEXT NOT NULL)"


def index_path(data_path: Path) -> Path:
    """Where the index of a data file lies."""
    return data_path.with_name(data_path.name + ".db")


class IndexFile:
    """An index as a source of places: what it says of a row group is compared with the header when it is read.

    The boundaries between records inside a group are not compared with the data: that would read the whole file.

    Raises:
        ValueError: it is no index, or one of another number of records.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._path = path
        self._header = header
        [(last,)] = self._select("SELECT MAX(ROW_ID) FROM INDEXES")
        if last != (header.rows - 1 if header.rows else None):
            raise ValueError(f"it does not have {header.rows} rows as the data has")

    def blob(self, group: RowGroup) -> Places:
        """Where a group's blob parts begin, less its own beginning, and where the last one ends: uint32 (rows + 1,)."""
        return self._places(group, "BLOB", group.blob_begin, group.blob_end)

    def raw(self, group: RowGroup) -> Places:
        """Likewise for the raw parts."""
        return self._places(group, "RAW", group.raw_begin, group.raw_end)

    def _places(self, group: RowGroup, kind: str, first: int, last: int) -> Places:
        rows = group.end_row - group.start_row
        query = (
            f"SELECT PAGE_ID_{kind}, PAGE_OFFSET_{kind}, PAGE_OFFSET_{kind}_END FROM INDEXES "
            "WHERE ROW_ID >= ? AND ROW_ID < ? ORDER BY ROW_ID LIMIT ?"
        )
        found = self._select(query, group.start_row, group.end_row, rows + 1)
        if len(found) != rows:
            raise ValueError(f"it does not have {rows} rows from {group.start_row} on")
        if any(type(place) is not int or not 0 <= place < 2**48 for row in found for place in row):
            raise ValueError("it holds something else than places")
        pages, begins, ends = np.array(found, dtype=np.int64).reshape(rows, 3).T
        starts = self._header.header_size + pages * self._header.page_size - first
        begins, ends = starts + begins, starts + ends
        sound = rows == 0 or (begins[0] == 0 and ends[-1] == last - first and bool((begins[1:] == ends[:-1]).all()))
        if not (sound and bool((ends - begins >= LENGTH.size).all())):
            raise ValueError("its places are not those of the data")
        return np.append(begins, last - first).astype(np.uint32)

    def _select(self, query: str, *values: int) -> list[Any]:
        try:
            # "immutable" reads beside a running writer and in folders where SQLite cannot make its lock files.
            address = f"{self._path.absolute().as_uri()}?mode=ro&immutable=1"
            with closing(sqlite3.connect(address, uri=True)) as database:
                return database.execute(query, values).fetchall()
        except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
            raise ValueError(f"it is not a MindRecord index ({error})") from error


def write_index(path: Path, name: str, data: mmap.mmap, header: Header) -> None:
    """Write the index of one data file; ``name`` is the data file's base name.

    All scalar columns are indexed, as MindSpore does by default.

    Raises:
        ValueError: the data does not hold the records that its header says.
        OSError: it cannot be written.
    """
    fields = raw_columns(header.schema)
    columns = [f"INC_{number} INT, {_column(header, field)}" for number, field in enumerate(fields)]
    key = ",".join(["ROW_ID", *(f"INC_{number}" for number in range(len(fields)))])
    create = f"{_CREATE_INDEXES}{','.join([*columns, f' PRIMARY KEY({key})'])})"
    insert = f"INSERT INTO INDEXES VALUES ({','.join('?' * (8 + 2 * len(fields)))})"
    try:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("PRAGMA synchronous=OFF")  # a file that is still staged need not survive a power cut
            database.execute(create)
            database.execute(_CREATE_SHARD_NAME)
            database.execute("INSERT INTO SHARD_NAME VALUES (?)", (name,))
            database.executemany(insert, _index_rows(data, header))
    except sqlite3.Error as error:
        raise OSError(f"SQLite: {error}") from error


def _column(header: Header, field: str) -> str:
    kind = header.schema[field].type
    affinity = "INTEGER" if kind in INTEGERS else "REAL" if kind in FLOATS else "TEXT"
    return f'"{field}_0" {affinity}' if field[0].isdigit() else f"{field}_0 {affinity}"


def _index_rows(data: mmap.mmap, header: Header) -> Iterator[tuple[object, ...]]:
    fields = raw_columns(header.schema)
    for group in row_groups(header):
        blobs, raws = scan_blob(data, group).tolist(), scan_raw(data, group).tolist()
        blob_page, blob_offset = divmod(group.blob_begin - header.header_size, header.page_size)
        raw_page, raw_offset = divmod(group.raw_begin - header.header_size, header.page_size)
        for number, row in enumerate(range(group.start_row, group.end_row)):
            raw_places = raw_page, raw_offset + raws[number], raw_offset + raws[number + 1]
            blob_places = blob_page, blob_offset + blobs[number], blob_offset + blobs[number + 1]
            begin, end = group.raw_begin + raws[number] + LENGTH.size, group.raw_begin + raws[number + 1]
            values = decode_raw(data[begin:end], header.schema, fields)
            indexed = (cell for field in fields for cell in (0, values[field]))
            yield row, *raw_places, group.number, *blob_places, *indexed
