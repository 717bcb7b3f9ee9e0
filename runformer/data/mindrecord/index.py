"""The SQLite index beside a data file (``NAME.db``): it opens large files at once, and MindSpore needs it."""

from __future__ import annotations

import mmap
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from runformer.data.mindrecord.header import LENGTH, Header
from runformer.data.mindrecord.records import decode_raw
from runformer.data.mindrecord.rows import Positions, RowGroup, RowTable, row_groups
from runformer.data.mindrecord.schema import FLOATS, INTEGERS, raw_columns

_PLACES = (
    "PAGE_ID_RAW, PAGE_OFFSET_RAW, PAGE_OFFSET_RAW_END, ROW_GROUP_ID, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, "
    "PAGE_OFFSET_BLOB_END"
)
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


def read_index(path: Path, header: Header) -> RowTable:
    """Where the records lie by the index, after checking that it agrees with the header.

    The boundaries between records inside a page are not checked here: that would read the whole file.

    Raises:
        ValueError: it is no index, or one of other data.
    """
    places = _select(path, header.rows)
    table = RowTable(
        blob_begin=header.header_size + places[:, 4] * header.page_size + places[:, 5],
        blob_end=header.header_size + places[:, 4] * header.page_size + places[:, 6],
        raw_begin=header.header_size + places[:, 0] * header.page_size + places[:, 1],
        raw_end=header.header_size + places[:, 0] * header.page_size + places[:, 2],
    )
    for group in row_groups(header):
        rows = slice(group.start_row, group.end_row)
        _check_run(table.blob_begin[rows], table.blob_end[rows], group.blob_begin, group.blob_end)
        _check_run(table.raw_begin[rows], table.raw_end[rows], group.raw_begin, group.raw_end)
    return table


def _select(path: Path, rows: int) -> Positions:
    """The places of all rows, in the order of ``_PLACES``: shape (rows, 7)."""
    try:
        # "immutable" reads beside a running writer and in folders where SQLite cannot make its lock files.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            query = f"SELECT {_PLACES} FROM INDEXES ORDER BY ROW_ID LIMIT ?"
            found = database.execute(query, (rows + 1,)).fetchall()
    except (sqlite3.Error, OverflowError) as error:
        raise ValueError(f"it is not a MindRecord index ({error})") from error
    if len(found) != rows:
        raise ValueError(f"it does not have {rows} rows as the data has")
    if any(type(place) is not int or place < 0 for row in found for place in row):
        raise ValueError("it holds something else than places")
    return np.array(found, dtype=np.int64).reshape(rows, 7)


def _check_run(begin: Positions, end: Positions, first: int, last: int) -> None:
    if len(begin) == 0:
        return
    sound = begin[0] == first and end[-1] == last and bool((begin[1:] == end[:-1]).all())
    if not (sound and bool((end - begin >= LENGTH.size).all())):
        raise ValueError("its places are not those of the data")


def write_index(path: Path, name: str, data: mmap.mmap, header: Header, table: RowTable) -> None:
    """Write the index of one data file; ``name`` is the data file's base name.

    All scalar columns are indexed, as MindSpore does by default.

    Raises:
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
            database.executemany(insert, _index_rows(data, header, table))
    except sqlite3.Error as error:
        raise OSError(f"SQLite: {error}") from error


def _column(header: Header, field: str) -> str:
    kind = header.schema[field].type
    affinity = "INTEGER" if kind in INTEGERS else "REAL" if kind in FLOATS else "TEXT"
    return f'"{field}_0" {affinity}' if field[0].isdigit() else f"{field}_0 {affinity}"


def _index_rows(data: mmap.mmap, header: Header, table: RowTable) -> Iterator[tuple[object, ...]]:
    fields = raw_columns(header.schema)
    for group in row_groups(header):
        for row in range(group.start_row, group.end_row):
            raw = data[int(table.raw_begin[row]) + LENGTH.size : int(table.raw_end[row])]
            values = decode_raw(raw, header.schema, fields)
            indexed = (cell for field in fields for cell in (0, values[field]))
            yield row, *_places(header, table, group, row), *indexed


def _places(header: Header, table: RowTable, group: RowGroup, row: int) -> tuple[int, ...]:
    raw_page, raw_offset = divmod(int(table.raw_begin[row]) - header.header_size, header.page_size)
    blob_page, blob_offset = divmod(int(table.blob_begin[row]) - header.header_size, header.page_size)
    raw_end = raw_offset + int(table.raw_end[row] - table.raw_begin[row])
    blob_end = blob_offset + int(table.blob_end[row] - table.blob_begin[row])
    return raw_page, raw_offset, raw_end, group.number, blob_page, blob_offset, blob_end
