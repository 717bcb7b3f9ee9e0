"""The SQLite index beside a MindRecord file: compared with the data, and made anew where it is not that of the data.

Runformer's own reader does without an index; MindSpore does not.
"""

from __future__ import annotations

import math
import mmap
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from runformer.data.inspect.indexed import megatron_prefix
from runformer.data.mindrecord.header import Header
from runformer.data.mindrecord.index import index_path, write_index
from runformer.data.mindrecord.reader import read_header
from runformer.data.mindrecord.sqlite import connect_to_index
from runformer.data.open import mindrecord_files
from runformer.errors import DataError

_PLACES = (
    "ROW_ID",
    "PAGE_ID_RAW",
    "PAGE_OFFSET_RAW",
    "PAGE_OFFSET_RAW_END",
    "ROW_GROUP_ID",
    "PAGE_ID_BLOB",
    "PAGE_OFFSET_BLOB",
    "PAGE_OFFSET_BLOB_END",
)


@dataclass(frozen=True, slots=True)
class Reindexed:
    """What became of one index: ``wrong`` says how the old one disagreed; ``written`` whether there is a new one."""

    index: Path
    records: int
    written: bool
    wrong: str | None

    def __str__(self) -> str:
        if not self.written:
            return f"{self.index} agrees with its {self.records:,} records; left as it is"
        was = f"; the old one disagreed with the data: {self.wrong}" if self.wrong else "; there was none"
        return f"wrote {self.index} of {self.records:,} records{was}"


def reindex(path: Path) -> Iterator[Reindexed]:
    """Look over the index of every data file of a dataset, one after another, and write those that are amiss.

    Args:
        path: a data file, which brings its shards along, or a folder.

    Raises:
        DataError: a data file is missing or damaged, or an index cannot be written.
    """
    if megatron_prefix(path) is not None:
        hint = "index is for the .db of MindRecord files; make the dataset anew if its .idx is damaged"
        raise DataError(f"{path} belongs to Megatron-LM's indexed dataset", hint=hint)
    if path.suffix == ".db" and path.with_suffix("").is_file():
        path = path.with_suffix("")
    for file in mindrecord_files(path) if path.is_dir() else _with_shards(path):
        yield _reindex_file(file)


def _with_shards(path: Path) -> list[Path]:
    names = read_header(path).shard_names
    if len(names) == 1:  # it may have been renamed
        return [path]
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        hint = "put all shards into one folder under their own names"
        raise DataError(f"{path} is one of {len(names)} shards, but {', '.join(missing)} is not beside it", hint=hint)
    return [path.with_name(name) for name in names]


def _reindex_file(path: Path) -> Reindexed:
    header = read_header(path)
    index = index_path(path)
    try:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{index.name}-"))
    except OSError as error:
        raise _cannot_write(index, error) from error
    try:
        fresh = folder / index.name
        _build(path, header, fresh)
        wrong = _difference(index, fresh) if index.exists() else None
        if index.exists() and wrong is None:
            return Reindexed(index, header.rows, written=False, wrong=None)
        # A journal of an interrupted writer would be played back into the new file.
        index.with_name(f"{index.name}-journal").unlink(missing_ok=True)
        fresh.replace(index)
        return Reindexed(index, header.rows, written=True, wrong=wrong)
    except OSError as error:
        raise _cannot_write(index, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cannot_write(index: Path, error: OSError) -> DataError:
    hint = "check that the folder is writable and has room"
    return DataError(f"{index} cannot be written: {error.strerror or error}", hint=hint)


def _build(path: Path, header: Header, target: Path) -> None:
    """Write the index that the data itself asks for."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            write_index(target, path.name, data, header)
        except ValueError as error:
            hint = "copy the file again, or make it anew: an index cannot mend it"
            raise DataError(f"{path} is damaged: {error}", hint=hint) from error


def _difference(old: Path, new: Path) -> str | None:
    """How an index differs from the right one; None: not at all, or only in having fewer columns indexed."""
    try:
        with closing(connect_to_index(old)) as left, closing(connect_to_index(new)) as right:
            return _difference_of_names(left, right) or _difference_of_rows(left, right)
    except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
        return f"it cannot be read ({error})"


def _difference_of_names(left: sqlite3.Connection, right: sqlite3.Connection) -> str | None:
    query = "SELECT NAME FROM SHARD_NAME LIMIT 2"
    old, new = left.execute(query).fetchall(), right.execute(query).fetchall()
    return None if old == new else f"it is that of {', '.join(str(name) for (name,) in old) or 'no file'}"


def _difference_of_rows(left: sqlite3.Connection, right: sqlite3.Connection) -> str | None:
    known = [str(row[1]) for row in right.execute("PRAGMA table_info(INDEXES)")]
    present = {str(row[1]) for row in left.execute("PRAGMA table_info(INDEXES)")}
    if not present.issuperset(_PLACES):
        return "it has no places of records"
    if not present <= set(known):
        return f"it has columns that the data lacks: {', '.join(sorted(present - set(known)))}"
    columns = [name for name in known if name in present]
    query = f"SELECT {', '.join(_quoted(name) for name in columns)} FROM INDEXES ORDER BY ROW_ID"
    for old, new in zip_longest(left.execute(query), right.execute(query)):
        if old is None:
            return f"it lacks record {new[0]} and what follows"
        if new is None:
            return "it has more records"
        for name, one, other in zip(columns, old, new, strict=True):
            if not _same(one, other):
                return f"{name} of record {new[0]} is {one!r}, not {other!r}"
    return None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _same(old: object, new: object) -> bool:
    """Whether two cells agree; MindSpore writes floats with 15 digits, and text to its first NUL."""
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-9)
    if isinstance(old, str) and isinstance(new, str):
        return old in (new, new.partition("\0")[0])
    return type(old) is type(new) and old == new
