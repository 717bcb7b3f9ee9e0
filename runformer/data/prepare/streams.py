"""The bytes of a file, decompressed on the way."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from runformer.errors import DataError

Compression = Literal["gz", "bz2", "xz", "zst"]

MAGIC: dict[bytes, Compression] = {
    b"\x1f\x8b": "gz",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
}
SUFFIXES: dict[str, Compression] = {".gz": "gz", ".bz2": "bz2", ".xz": "xz", ".zst": "zst", ".zstd": "zst"}

_SKIP = 1 << 20


class ByteStream:
    """A file that is read once from front to back, used as a context manager.

    Args:
        path: the file.
        compression: how it is compressed.
        offset: decompressed bytes to pass over.

    Raises:
        DataError: it cannot be opened, is damaged, or ends before ``offset``.
    """

    def __init__(self, path: Path, compression: Compression | None, offset: int = 0) -> None:
        self._path = path
        with explaining_reads(path):
            self._raw: IO[bytes] = path.open("rb")
            try:
                self._file = _decompressed(self._raw, compression)
            except BaseException:
                self._raw.close()
                raise
        try:
            self._pass_over(offset, compression)
        except BaseException:
            self.close()
            raise

    @property
    def consumed(self) -> int:
        """Bytes of the file on disk that were read."""
        return self._raw.tell()

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; none at the end.

        Raises:
            DataError: the file is damaged or cannot be read.
        """
        with explaining_reads(self._path):
            return bytes(self._file.read(size))

    def _pass_over(self, offset: int, compression: Compression | None) -> None:
        if compression is None:
            self._raw.seek(offset)
            return
        while offset > 0:
            offset -= len(data := self.read(min(offset, _SKIP)))
            if not data:
                raise DataError(f"{self._path} is shorter than it was", hint="delete the work folder and start anew")

    def close(self) -> None:
        """Close the file."""
        if self._file is not self._raw:
            self._file.close()
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _decompressed(raw: IO[bytes], compression: Compression | None) -> Any:
    match compression:
        case None:
            return raw
        case "gz":
            return gzip.GzipFile(fileobj=raw, mode="rb")
        case "bz2":
            return bz2.BZ2File(raw)
        case "xz":
            return lzma.LZMAFile(raw)
        case "zst":
            pyarrow = import_pyarrow("files compressed by zstd")
            return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd")


def import_pyarrow(what: str) -> Any:
    """The pyarrow module, which reads ``what``.

    Raises:
        DataError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            f"pyarrow, which reads {what}, is not installed", hint="pip install 'runformer[data]'"
        ) from error
    return pyarrow


@contextmanager
def explaining_reads(path: Path) -> Iterator[None]:
    """Turn what reading and decompressing raise into a message for a person."""
    again = "copy or download it again"
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", hint="check --input") from error
    except EOFError as error:
        raise DataError(f"{path} is cut off: its compressed data ends too early", hint=again) from error
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged: {error}", hint=again) from error
    except OSError as error:
        if error.strerror is None:  # what bz2 and pyarrow say of damaged data
            raise DataError(f"{path} is damaged or cut off: {error}", hint=again) from error
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
