"""Writing indexed datasets, in as little memory for many tokens as for few."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from runformer.data.megatron.layout import (
    DOCUMENT,
    DTYPES,
    HEADER,
    LENGTH,
    MAGIC,
    POINTER,
    VERSION,
    data_path,
    index_path,
)
from runformer.data.writing import explaining_writes
from runformer.errors import DataError

_BUFFER = 1 << 20  # bytes
_CHUNK = 1 << 18  # sequences
_LONGEST = int(np.iinfo(LENGTH).max)


class IndexedWriter:
    """Writes sequences in a ``with`` block and commits on leaving it; an exception in it leaves nothing behind.

    Args:
        prefix: ``PREFIX.bin`` and ``PREFIX.idx`` are written.
        dtype: of the tokens on disk: one that Megatron-LM has a code for.
        overwrite: replace existing files on commit.

    Raises:
        DataError: an argument is wrong, a file exists already, or it cannot be written.
    """

    def __init__(self, prefix: str | Path, dtype: DTypeLike = np.int32, *, overwrite: bool = False) -> None:
        self._prefix = Path(prefix)
        self._dtype = np.dtype(dtype)
        codes = [code for code, known in DTYPES.items() if known == self._dtype]
        if not codes:
            known_names = ", ".join(known.name for known in DTYPES.values())
            raise DataError(f"{prefix}: tokens cannot be written as {self._dtype}; there are {known_names}")
        self._code = codes[0]
        for path in (data_path(prefix), index_path(prefix)):
            if path.exists() and not overwrite:
                raise DataError(f"{path} exists already", hint="delete it or choose another name")
        self._sequences = 0
        self._folder = self._prefix.parent
        self._data: BinaryIO | None = None
        self._lengths: BinaryIO | None = None

    def add(self, tokens: Sequence[int] | NDArray[Any]) -> None:
        """Add one sequence, which is a document by itself.

        Raises:
            DataError: the tokens are not a row of integers, or too many, or one does not fit the dtype.
        """
        data, lengths = self._open_files()
        row = self._checked(np.asarray(tokens))
        with explaining_writes(data_path(self._prefix)):
            data.write(np.ascontiguousarray(row, dtype=self._dtype).data)
            lengths.write(LENGTH.type(row.size).tobytes())
        self._sequences += 1

    def _checked(self, row: NDArray[Any]) -> NDArray[Any]:
        where = f"sequence {self._sequences} for {self._prefix}"
        if row.ndim != 1 or (row.size and row.dtype.kind not in "iu" and row.dtype != self._dtype):
            raise DataError(f"{where} is not a row of token ids, but of shape {row.shape} and type {row.dtype}")
        if row.size > _LONGEST:
            raise DataError(f"{where} has {row.size} tokens, more than {_LONGEST}", hint="cut it into several")
        if row.size and row.dtype != self._dtype and self._dtype.kind in "iu":
            limits = np.iinfo(self._dtype)
            for token in (int(row.min()), int(row.max())):
                if not limits.min <= token <= limits.max:
                    message = f"{where}: token id {token} does not fit {self._dtype}"
                    raise DataError(message, hint="choose a larger dtype")
        return row

    def _open_files(self) -> tuple[BinaryIO, BinaryIO]:
        if self._data is None or self._lengths is None:
            raise ValueError("an IndexedWriter writes in a with block")
        return self._data, self._lengths

    def _commit(self) -> None:
        data, lengths = self._open_files()
        data.close()
        staged = self._folder / "idx"
        with staged.open("wb", _BUFFER) as index:
            self._write_index(index, lengths)
        # An old index must not be seen beside new tokens.
        index_path(self._prefix).unlink(missing_ok=True)
        (self._folder / "bin").replace(data_path(self._prefix))
        staged.replace(index_path(self._prefix))

    def _write_index(self, index: BinaryIO, lengths: BinaryIO) -> None:
        index.write(HEADER.pack(MAGIC, VERSION, self._code, self._sequences, self._sequences + 1))
        lengths.seek(0)
        shutil.copyfileobj(lengths, index, _BUFFER)
        lengths.seek(0)
        begin = 0  # of a chunk, in bytes of the data
        while chunk := lengths.read(_CHUNK * LENGTH.itemsize):
            ends = begin + np.cumsum(np.frombuffer(chunk, LENGTH), dtype=POINTER) * self._dtype.itemsize
            index.write(np.concatenate(([begin], ends[:-1])).astype(POINTER).tobytes())
            begin = int(ends[-1])
        for first in range(0, self._sequences + 1, _CHUNK):
            index.write(np.arange(first, min(first + _CHUNK, self._sequences + 1), dtype=DOCUMENT).tobytes())

    def __enter__(self) -> Self:
        with explaining_writes(data_path(self._prefix)):
            # Files are made in a folder beside the place where they go, on the same disk: renaming them is at once.
            self._folder = Path(tempfile.mkdtemp(dir=self._prefix.parent, prefix=f".{self._prefix.name}-"))
            try:
                self._data = (self._folder / "bin").open("wb", _BUFFER)
                self._lengths = (self._folder / "lengths").open("w+b", _BUFFER)
            except BaseException:
                self._clean_up()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with explaining_writes(data_path(self._prefix)):
                    self._commit()
        finally:
            self._clean_up()

    def _clean_up(self) -> None:
        for file in (self._data, self._lengths):
            if file is not None:
                _close(file)
        shutil.rmtree(self._folder, ignore_errors=True)


def _close(file: BinaryIO) -> None:
    """A full disk may refuse what is still buffered; it is thrown away anyhow."""
    try:
        file.close()
    except OSError:
        file.close()
