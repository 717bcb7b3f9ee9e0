"""Opening the SQLite file of an index, which may come from anywhere, for reading."""

from __future__ import annotations

import sqlite3
from pathlib import Path

_LONGEST = 1 << 28  # bytes of a cell: no record is larger


def connect_to_index(path: Path) -> sqlite3.Connection:
    """A connection to an index, which has the table ``INDEXES``: not a view of that name, which may never end.

    Raises:
        sqlite3.Error: it is no SQLite file, or has no such table.
    """
    # "immutable" reads beside a running writer and in folders where SQLite cannot make its lock files.
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
        kinds = database.execute(
            "SELECT type, sql LIKE 'create virtual%' FROM sqlite_master WHERE name = 'INDEXES' COLLATE NOCASE LIMIT 2"
        ).fetchall()
        if kinds != [("table", 0)]:
            raise sqlite3.DatabaseError("it has no table INDEXES")
    except BaseException:
        database.close()
        raise
    return database
