"""The SQLite index beside a data file (``NAME.db``): it opens large files at once, and MindSpore needs it."""

from __future__ import annotations

import mmap
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runformer.data.mindrecord.header import LENGTH, Header
from runformer.data.mindrecord.records import decode_raw
from runformer.data.mindrecord.rows import Places, Stretch, blobs, raws, row_groups, scan
from runformer.data.mindrecord.schema import FLOATS, INTEGERS, raw_columns
from runformer.data.mindrecord.sqlite import connect_to_index

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


Kind = Literal["BLOB", "RAW"]

_OTHER_PLACES = "its places are not those of the data"


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

    def places(self, kind: Kind, stretch: Stretch) -> Places:
        """Where every part of a stretch begins, less the stretch's beginning, and where the last one ends.

        uint32 of shape (rows + 1,).

        Raises:
            ValueError: the index does not agree with the header.
        """
        query = (
            f"SELECT PAGE_ID_{kind}, PAGE_OFFSET_{kind}, PAGE_OFFSET_{kind}_END FROM INDEXES "
            "WHERE ROW_ID >= ? AND ROW_ID < ? ORDER BY ROW_ID LIMIT ?"
        )
        rows, last = stretch.rows, stretch.end - stretch.begin
        found = self._select(query, stretch.first_row, stretch.first_row + rows, rows + 1)
        if len(found) != rows:
            raise ValueError(f"it does not have {rows} rows from {stretch.first_row} on")
        if any(type(place) is not int or not 0 <= place < 2**48 for row in found for place in row):
            raise ValueError("it holds something else than places")
        pages, begins, ends = np.array(found, dtype=np.int64).reshape(rows, 3).T
        starts = self._header.header_size + pages * self._header.page_size - stretch.begin
        begins, ends = starts + begins, starts + ends
        sound = rows == 0 or (begins[0] == 0 and ends[-1] == last and bool((begins[1:] == ends[:-1]).all()))
        if not (sound and bool((ends - begins >= LENGTH.size).all())):
            raise ValueError(_OTHER_PLACES)
        return np.append(begins, last).astype(np.uint32)

    def compare(self, kind: Kind, stretch: Stretch, places: Places) -> None:
        """See that it says of many short records what was found in the data; sums will do.

        Args:
            kind: of their parts.
            stretch: where these lie.
            places: where each of them begins, less the stretch's beginning, and where the last one ends.

        Raises:
            ValueError: it says something else.
        """
        query = (
            f"SELECT COUNT(*), MIN(PAGE_ID_{kind}), MAX(PAGE_ID_{kind}), SUM(PAGE_OFFSET_{kind}), "
            f"SUM(PAGE_OFFSET_{kind}_END), SUM(ROW_ID * PAGE_OFFSET_{kind} % 1000003) "
            "FROM INDEXES WHERE ROW_ID >= ? AND ROW_ID < ?"
        )
        page, offset = divmod(stretch.begin - self._header.header_size, self._header.page_size)
        found = self._select(query, stretch.first_row, stretch.first_row + stretch.rows)
        ends = places.astype(np.int64) + offset
        numbers = np.arange(stretch.first_row, stretch.first_row + stretch.rows)
        sums = int(ends[:-1].sum()), int(ends[1:].sum()), int((numbers * ends[:-1] % 1000003).sum())
        if stretch.rows and found != [(stretch.rows, page, page, *sums)]:
            raise ValueError(_OTHER_PLACES)

    def _select(self, query: str, *values: int) -> list[Any]:
        try:
            with closing(connect_to_index(self._path)) as database:
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
    groups = list(row_groups(header))
    for group, blob, raw in zip(groups, blobs(groups), raws(groups), strict=True):
        blob_ends, raw_ends = scan(data, blob).tolist(), scan(data, raw).tolist()
        blob_page, blob_offset = divmod(blob.begin - header.header_size, header.page_size)
        raw_page, raw_offset = divmod(raw.begin - header.header_size, header.page_size)
        for number, row in enumerate(range(group.start_row, group.end_row)):
            raw_places = raw_page, raw_offset + raw_ends[number], raw_offset + raw_ends[number + 1]
            blob_places = blob_page, blob_offset + blob_ends[number], blob_offset + blob_ends[number + 1]
            begin, end = raw.begin + raw_ends[number] + LENGTH.size, raw.begin + raw_ends[number + 1]
            values = decode_raw(data[begin:end], header.schema, fields)
            indexed = (cell for field in fields for cell in (0, values[field]))
            yield row, *raw_places, group.number, *blob_places, *indexed
