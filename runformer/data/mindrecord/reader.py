"""Reading MindRecord: any record by its number, straight from memory-mapped files."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from runformer.data.mindrecord.header import LENGTH, Header, parse_header
from runformer.data.mindrecord.index import IndexFile, Kind, index_path
from runformer.data.mindrecord.records import Value, decode_blob, decode_raw
from runformer.data.mindrecord.rows import Places, RowTable, Stretch, blobs, raws, row_groups, scan
from runformer.data.mindrecord.schema import Column, Schema, blob_columns, raw_columns
from runformer.data.native import native
from runformer.data.records import Ids, Records
from runformer.errors import DataError


class MindRecordReader(Records):
    """The records of one MindRecord dataset in file order: shard 0, shard 1, ….

    Args:
        paths: one path opens all shards that its header names, in the folder of that path; a sequence opens
            just those files.

    A value is a numpy array (array columns), int, float, str or bytes. Damage that the length prefixes show is
    found on opening where there is no index, else when the record is read. Reading is safe from several threads.

    Raises:
        DataError: a file is missing or is no sound MindRecord file, or the files differ in their columns.
    """

    def __init__(self, paths: str | Path | Sequence[str | Path]) -> None:
        self._shards: list[_Shard] = []
        self.name = str(paths) if isinstance(paths, str | Path) else ", ".join(map(str, paths))
        try:
            if isinstance(paths, str | Path):
                self._shards.extend(_open_all_shards(Path(paths)))
            else:
                self._shards.extend(_Shard(Path(path)) for path in paths)
            self._check_shards()
        except BaseException:
            self.close()
            raise
        self._ends = list(accumulate(shard.header.rows for shard in self._shards))

    def _check_shards(self) -> None:
        if not self._shards:
            raise DataError("no MindRecord file was given")
        first = self._shards[0]
        for shard in self._shards[1:]:
            if shard.header.schema != first.header.schema:
                raise DataError(f"{shard.path} has other columns than {first.path}", hint="open them apart")

    @property
    def column_names(self) -> Sequence[str]:
        """In alphabetical order."""
        return list(self.schema)

    @property
    def schema(self) -> Schema:
        """Column name → its type and shape, in alphabetical order."""
        return self._shards[0].header.schema

    @property
    def paths(self) -> list[Path]:
        """The data files, in the order of their records."""
        return [shard.path for shard in self._shards]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, record: int) -> dict[str, Value]:
        return self.read_columns(record, self.schema)

    def read_columns(self, record: int, columns: Iterable[str]) -> dict[str, Value]:
        """Some columns of one record; the others are not decoded.

        Raises:
            IndexError: there is no such record.
            KeyError: there is no such column.
            DataError: the record is damaged.
        """
        wanted = list(columns)
        for name in wanted:
            if name not in self.schema:
                raise KeyError(name)
        shard, row = self._find(record)
        values = shard.read(row, wanted)
        return {name: values[name] for name in wanted}

    def read_rows(self, records: Sequence[int] | Ids, columns: Sequence[str], length: int) -> list[Ids]:
        """As ``Records``; columns of integers are decoded by compiled code, many records at a time."""
        if native is None or not len(records) or not all(_is_row(self.schema[name]) for name in columns):
            return super().read_rows(records, columns, length)
        numbers = np.asarray(records, dtype=np.int64)
        rows_CBT = [np.empty((len(numbers), length), dtype=np.int64) for _ in columns]
        for shard, chosen in self._by_shard(numbers):
            rows = numbers[chosen] - (self._ends[shard - 1] if shard else 0)
            for name, rows_BT in zip(columns, rows_CBT, strict=True):
                out = rows_BT if isinstance(chosen, slice) else np.empty((len(chosen), length), dtype=np.int64)
                bad = self._shards[shard].read_rows(rows, name, out)
                if bad >= 0:  # Python reads it again, and says what is wrong
                    record = int(numbers[chosen][bad])
                    super().read_rows([record], [name], length)
                    raise AssertionError(f"{self.describe(record)}: two readers do not agree")
                if out is not rows_BT:
                    rows_BT[chosen] = out
        return rows_CBT

    def _by_shard(self, numbers: Ids) -> Iterator[tuple[int, slice | Ids]]:
        """Which of some records lie in which shard."""
        if len(self._shards) == 1:
            yield 0, slice(None)
            return
        shards = np.searchsorted(self._ends, numbers, side="right")
        for shard in sorted(set(shards.tolist())):
            yield shard, np.flatnonzero(shards == shard)

    def describe(self, record: int) -> str:
        """Where a record lies, for messages: its number in its file counts from 0."""
        shard, row = self._find(record)
        return f"record {row} of {shard.path}"

    def _find(self, record: int) -> tuple[_Shard, int]:
        if not 0 <= record < len(self):
            raise IndexError(f"record {record} of {len(self)}")
        number = bisect_right(self._ends, record)
        return self._shards[number], record - (self._ends[number - 1] if number else 0)

    def close(self) -> None:
        """Unmap the files."""
        for shard in self._shards:
            shard.data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_row(column: Column) -> bool:
    return column.is_integer_array and column.shape is not None and len(column.shape) == 1


class _Shard:
    """One data file, mapped, with the places of its records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = _map_file(path)
        try:
            self.header = _read_header(path, self.data)
            self._index = index_path(path)
            self._indexed = self._index.exists()
            self._open_tables()
        except BaseException:
            self.data.close()
            raise
        self._blob_columns = blob_columns(self.header.schema)
        self._has_blob = frozenset(self._blob_columns)
        self._has_raw = frozenset(raw_columns(self.header.schema))

    def _open_tables(self) -> None:
        """Make the tables of places, and look at the first and the last row group, as a wrong index shows there."""
        with self._blaming(self.path):
            groups = list(row_groups(self.header))
        with self._blaming(self._index):
            index = IndexFile(self._index, self.header) if self._indexed else None
        self._blobs = RowTable(self.data, blobs(groups), partial(self._find, index, "BLOB"))
        self._raws = RowTable(self.data, raws(groups), partial(self._find, index, "RAW"))
        tables = [self._blobs, *([self._raws] if raw_columns(self.header.schema) else [])]
        for table in tables if self.header.rows else []:
            table.locate(0)
            table.locate(self.header.rows - 1)

    def _find(self, index: IndexFile | None, kind: Kind, stretch: Stretch, stride: int) -> Places:
        """The places of a stretch: an index saves going over long records, while short ones are sooner walked over."""
        if index is not None and stride == 1:
            with self._blaming(self._index):
                return index.places(kind, stretch)
        with self._blaming(self.path):
            places = scan(self.data, stretch, stride if index is None else 1)
        if index is None:
            return places
        with self._blaming(self._index):
            index.compare(kind, stretch, places)
        return np.append(places[:-1:stride], places[-1:])

    @contextmanager
    def _blaming(self, file: Path) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if file == self._index:
                text = f"{self._index} does not fit its data file: {error}"
                raise DataError(text, hint=_DELETE_INDEX) from error
            raise DataError(f"{self.path} is damaged: {error}", hint=_COPY_AGAIN) from error

    def read(self, row: int, wanted: Collection[str]) -> dict[str, Value]:
        values: dict[str, Value] = {}
        with self._blaming_record(row):
            if not self._has_blob.isdisjoint(wanted):
                blob = self._bytes(self._blobs, row)
                values |= decode_blob(blob, self.header.schema, wanted, self.header.version != "2.0")
            if not self._has_raw.isdisjoint(wanted):
                values |= decode_raw(self._bytes(self._raws, row), self.header.schema, wanted)
        return values

    def read_rows(self, rows: Ids, column: str, out: Ids) -> int:
        """Fill ``out``, (B, T), with a column of integers; the first of ``rows`` that has something else, or -1."""
        assert native is not None
        names, schema, table = self._blob_columns, self.header.schema, self._blobs
        form = names.index(column), len(names), schema[column].dtype.itemsize, self.header.version != "2.0"
        places = table.first_rows, table.first_places, table.begins, table.places, table.known, table.stride
        while (found := native.unpack_rows(self.data, rows, *places, *form, out)) < -1:
            table.learn(-2 - found)
        return found

    @contextmanager
    def _blaming_record(self, row: int) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            hint = (
                f"{_COPY_AGAIN}; if only {self._index.name} is out of date, delete it" if self._indexed else _COPY_AGAIN
            )
            raise DataError(f"record {row} of {self.path} is damaged: {error}", hint=hint) from error

    def _bytes(self, table: RowTable, row: int) -> bytes:
        begin, end = table.locate(row)
        length = LENGTH.unpack_from(self.data, begin)[0]
        if length != end - begin - LENGTH.size:
            raise ValueError(f"it should have {end - begin - LENGTH.size} bytes, but says {length}")
        return self.data[begin + LENGTH.size : end]


_COPY_AGAIN = "copy the file again, or make it anew"
_DELETE_INDEX = "make it anew: python -m runformer data index FILE; or delete it: the data is read without it"


def _open_all_shards(path: Path) -> list[_Shard]:
    shard = _Shard(path)
    names = shard.header.shard_names
    if len(names) == 1:  # its name in the header matters to nobody: it may have been renamed since
        return [shard]
    shard.data.close()
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        hint = "put all shards into one folder under their own names"
        raise DataError(f"{path} is one of {len(names)} shards, but {', '.join(missing)} is not beside it", hint=hint)
    shards: list[_Shard] = []
    try:
        for number, name in enumerate(names):
            shards.append(_Shard(path.with_name(name)))
            if shards[-1].header.shard_names != names or shards[-1].header.shard_id != number:
                raise DataError(f"{shards[-1].path} is not shard {number} of the dataset that {path} belongs to")
    except BaseException:
        for opened in shards:
            opened.data.close()
        raise
    return shards


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", hint="check the path of the dataset") from error
    except ValueError as error:
        raise DataError(f"{path} is empty", hint=_COPY_AGAIN) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def read_header(path: Path) -> Header:
    """The header of one data file; its index and its records are not looked at.

    Raises:
        DataError: there is no such file, or it is no sound MindRecord file.
    """
    with _map_file(path) as data:
        return _read_header(path, data)


def _read_header(path: Path, data: mmap.mmap) -> Header:
    if data[-len(_ENCRYPTED) :] == _ENCRYPTED:
        raise DataError(f"{path} is encrypted", hint="write it again without set_enc_key")
    size = len(data)
    length = LENGTH.unpack_from(data)[0] if size >= LENGTH.size else 0
    # The format has no magic number: a length that fits and a brace are the first signs of it.
    if not 0 < length <= size - LENGTH.size or data[LENGTH.size : LENGTH.size + 1] != b"{":
        raise DataError(f"{path} is not a MindRecord file, or its start is damaged", hint=_COPY_AGAIN)
    try:
        return parse_header(data[LENGTH.size : LENGTH.size + length], size)
    except ValueError as error:
        raise DataError(f"{path} is not a sound MindRecord file: {error}", hint=_COPY_AGAIN) from error


_ENCRYPTED = b"ENCRYPT"
