"""Writing MindRecord files that MindSpore opens."""

from __future__ import annotations

import mmap
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from runformer.data.mindrecord.header import LENGTH, Header, dump_header
from runformer.data.mindrecord.index import index_path, write_index
from runformer.data.mindrecord.paging import PagedFile
from runformer.data.mindrecord.records import Record, encode_record
from runformer.data.mindrecord.schema import Column, check_names
from runformer.data.writing import explaining_writes
from runformer.errors import DataError

_KIB, _MIB = 1 << 10, 1 << 20


class MindRecordWriter:
    """Writes records in a ``with`` block and commits on leaving it; an exception in it leaves nothing behind.

    Args:
        path: the data file; with several shards a number is added to each name (``NAME0``, ``NAME1``, …).
            ``path.db`` is written beside it.
        schema: column name → type and shape.
        shard_num: number of data files, up to 1000.
        header_size: bytes kept free for the header, 16 KiB to 128 MiB, in steps of 4.
        page_size: bytes of a page, 32 KiB to 256 MiB, in steps of 4; no record may be larger. What a page does
            not use is a hole in the file that takes no disk space.
        description: free text in the header.
        overwrite: replace existing files on commit.

    Raises:
        DataError: an argument is wrong, a file exists already, or it cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        schema: Mapping[str, Column],
        *,
        shard_num: int = 1,
        header_size: int = 16 * _MIB,
        page_size: int = 32 * _MIB,
        description: str = "",
        overwrite: bool = False,
    ) -> None:
        self._path = Path(path)
        self._schema = dict(sorted(schema.items()))
        self._header_size = _checked_size("header_size", header_size, 16 * _KIB, 128 * _MIB)
        self._page_size = _checked_size("page_size", page_size, 32 * _KIB, 256 * _MIB)
        self._description = description
        self._targets = _shard_paths(self._path, shard_num)
        self._rows = 0
        self._next_shard = 0
        self._saved = 0
        self._folder = self._path.parent
        self._files: list[PagedFile] = []
        try:
            check_names(self._schema)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        for target in [file for data in self._targets for file in (data, index_path(data))]:
            if target.exists() and not overwrite:
                raise DataError(f"{target} exists already", hint="delete it or choose another name")

    def write(self, records: Sequence[Record]) -> None:
        """Add records; with several shards each call spreads them in contiguous runs as even as can be.

        Raises:
            DataError: a record has not the columns, types and shapes of the schema, or is larger than a page.
        """
        encoded = [self._encode(number, record) for number, record in enumerate(records, self._rows)]
        with explaining_writes(self._path):
            for shard, run in self._runs(encoded):
                self._files[shard].append([blob for blob, _, _ in run], [raw for _, raw, _ in run])
                self._saved += sum(saved for _, _, saved in run)
        self._rows += len(encoded)

    def _encode(self, number: int, record: Record) -> tuple[bytes, bytes, int]:
        try:
            blob, raw, saved = encode_record(record, self._schema)
        except ValueError as error:
            raise DataError(f"record {number} for {self._path}: {error}") from error
        size = LENGTH.size + max(len(blob), len(raw))
        if size > self._page_size:
            message = f"record {number} for {self._path} takes {size} bytes, more than a page of {self._page_size}"
            raise DataError(message, hint="choose a larger page_size")
        return blob, raw, saved

    def _runs(self, encoded: list[tuple[bytes, bytes, int]]) -> Iterator[tuple[int, list[tuple[bytes, bytes, int]]]]:
        """Cut records into one run a shard. The spare ones go round the shards from call to call."""
        shards = len(self._files)
        base, spare = divmod(len(encoded), shards)
        begin = 0
        for shard in range(shards):
            end = begin + base + ((shard - self._next_shard) % shards < spare)
            if end > begin:
                yield shard, encoded[begin:end]
            begin = end
        self._next_shard = (self._next_shard + spare) % shards

    def _commit(self) -> None:
        for shard, file in enumerate(self._files):
            self._finish(shard, file)
        for target in self._targets:
            # An old index must not be seen beside new data; data without any index is read as well.
            index_path(target).unlink(missing_ok=True)
            (self._folder / target.name).replace(target)
            index_path(self._folder / target.name).replace(index_path(target))

    def _finish(self, shard: int, file: PagedFile) -> None:
        names = tuple(target.name for target in self._targets)
        header = Header(
            header_size=self._header_size,
            page_size=self._page_size,
            compression_size=max(0, self._saved),  # of all shards, in each of them
            schema=self._schema,
            description=self._description,
            shard_names=names,
            shard_id=shard,
            version="3.0",
            pages=tuple(file.pages),
        )
        head = dump_header(header)
        if len(head) > self._header_size:
            message = f"the header of {self._path} takes {len(head)} bytes, more than header_size {self._header_size}"
            raise DataError(message, hint="choose a larger page_size or header_size")
        file.finish(head)
        staged = self._folder / names[shard]
        with staged.open("rb") as data, mmap.mmap(data.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            write_index(index_path(staged), names[shard], mapped, header)

    def __enter__(self) -> Self:
        with explaining_writes(self._path):
            # Files are made in a folder beside the place where they go, on the same disk: renaming them is at once.
            self._folder = Path(tempfile.mkdtemp(dir=self._path.parent, prefix=f".{self._path.name}-"))
            try:
                for target in self._targets:
                    self._files.append(PagedFile(self._folder / target.name, self._header_size, self._page_size))
            except BaseException:
                self._clean_up()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with explaining_writes(self._path):
                    self._commit()
        finally:
            self._clean_up()

    def _clean_up(self) -> None:
        for file in self._files:
            file.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _checked_size(name: str, size: int, minimum: int, maximum: int) -> int:
    if not minimum <= size <= maximum or size % 4:
        raise DataError(f"{name} {size} should be {minimum} to {maximum} bytes, divisible by 4")
    return size


def _shard_paths(path: Path, shard_num: int) -> list[Path]:
    if not 1 <= shard_num <= 1000:
        raise DataError(f"shard_num {shard_num} should be 1 to 1000")
    if shard_num == 1:
        return [path]
    digits = len(str(shard_num - 1))
    return [path.with_name(f"{path.name}{shard:0{digits}}") for shard in range(shard_num)]
