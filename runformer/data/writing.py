"""What goes wrong where files are written, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runformer.errors import DataError


@contextmanager
def explaining_writes(path: Path) -> Iterator[None]:
    """Turn a failure of the file system into a message for a person."""
    try:
        yield
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        raise DataError(message, hint="check that the folder exists, is writable and has room") from error
