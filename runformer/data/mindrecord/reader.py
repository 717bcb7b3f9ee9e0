"""Reading MindRecord: any record by its number, straight from memory-mapped files."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Self

from runformer.data.mindrecord.header import LENGTH, Header, parse_header
from runformer.data.mindrecord.index import index_path, read_index
from runformer.data.mindrecord.records import Value, decode_blob, decode_raw
from runformer.data.mindrecord.rows import RowTable, scan_rows
from runformer.data.mindrecord.schema import Schema, blob_columns, raw_columns
from runformer.data.records import Records
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


class _Shard:
    """One data file, mapped, with the places of its records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = _map_file(path)
        try:
            self.header = _read_header(path, self.data)
            self._index = index_path(path)
            self._indexed = self._index.exists()
            self._table = self._locate()
        except BaseException:
            self.data.close()
            raise
        self._has_blob = frozenset(blob_columns(self.header.schema))
        self._has_raw = frozenset(raw_columns(self.header.schema))

    def _locate(self) -> RowTable:
        if self._indexed:
            try:
                return read_index(self._index, self.header)
            except ValueError as error:
                raise DataError(f"{self._index} does not fit its data file: {error}", hint=_DELETE_INDEX) from error
        try:
            return scan_rows(self.data, self.header)
        except ValueError as error:
            raise DataError(f"{self.path} is damaged: {error}", hint=_COPY_AGAIN) from error

    def read(self, row: int, wanted: Collection[str]) -> dict[str, Value]:
        values: dict[str, Value] = {}
        try:
            if not self._has_blob.isdisjoint(wanted):
                blob = self._bytes(int(self._table.blob_begin[row]), int(self._table.blob_end[row]))
                values |= decode_blob(blob, self.header.schema, wanted, self.header.version != "2.0")
            if not self._has_raw.isdisjoint(wanted):
                raw = self._bytes(int(self._table.raw_begin[row]), int(self._table.raw_end[row]))
                values |= decode_raw(raw, self.header.schema, wanted)
        except ValueError as error:
            hint = (
                f"{_COPY_AGAIN}; if only {self._index.name} is out of date, delete it" if self._indexed else _COPY_AGAIN
            )
            raise DataError(f"record {row} of {self.path} is damaged: {error}", hint=hint) from error
        return values

    def _bytes(self, begin: int, end: int) -> bytes:
        length = LENGTH.unpack_from(self.data, begin)[0]
        if length != end - begin - LENGTH.size:
            raise ValueError(f"it should have {end - begin - LENGTH.size} bytes, but says {length}")
        return self.data[begin + LENGTH.size : end]


_COPY_AGAIN = "copy the file again, or make it anew"
_DELETE_INDEX = "delete the .db file: the data is read without it; or make both anew"


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
