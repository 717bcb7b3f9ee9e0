"""Index files that Megatron's tools, and this program, keep from run to run.

Each belongs to a description, a JSON text that says what it was computed from; its MD5 hash is in the names
``HASH-CLASS-PART-ARRAY.npy`` and ``HASH-CLASS-PART-description.txt``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runformer.errors import DataError

logger = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]
Spec = tuple[tuple[int, ...], tuple[np.dtype[Any], ...]]
_LARGEST_DESCRIPTION = 1 << 22  # bytes
_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 1 << 12
_HEADER = re.compile(
    rb"\{'descr': '([<|][iu][1248])', 'fortran_order': False, 'shape': \(((?:\d{1,18},? ?){1,3})\), \} *\n"
)


@dataclass(frozen=True, slots=True)
class IndexCache:
    """Where some arrays are kept, and what they should be.

    Args:
        folder: which folder they are in.
        kind: Megatron's class, such as ``GPTDataset``.
        part: ``train``, ``valid`` or ``test``.
        identifiers: what they are computed from.
        specs: name of each array → its shape, and dtypes it may have, of which the first is written.
    """

    folder: Path
    kind: str
    part: str
    identifiers: Mapping[str, Any]
    specs: Mapping[str, Spec]

    def open(self, build: Callable[[Arrays], None]) -> Arrays:
        """The arrays, mapped from their files. What is not there, or does not fit, is made anew.

        One process of a machine builds, the others wait for it; on several machines each may, and all write the same.
        Where the folder cannot be written, every process keeps files of its own, which are gone when it ends.

        Args:
            build: fills arrays of the shapes and first dtypes of ``specs``.

        Raises:
            DataError: there is no room for them.
        """
        found = self._find()
        if found is not None:
            return found
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder):
                return self._find() or self._build_in(self.folder, build)
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s): indices of the dataset are not kept", self.folder, error.strerror
            )
        try:
            return self._build_in(None, build)
        except OSError as error:
            message = f"indices of the dataset cannot be written to {self.folder}, nor to {tempfile.gettempdir()}"
            raise DataError(f"{message}: {error.strerror}", hint="set path_to_cache to a folder with room") from error

    @property
    def description(self) -> str:
        """What is hashed."""
        return json.dumps(self.identifiers, indent=4)

    def _stem(self) -> str:
        digest = hashlib.md5(self.description.encode(), usedforsecurity=False).hexdigest()
        return f"{digest}-{self.kind}-{self.part}"

    def _find(self) -> Arrays | None:
        stem = self._stem()
        if (self.folder / f"{stem}-description.txt").is_file():
            return self._load(self.folder, stem)
        return next((arrays for stem in self._similar() if (arrays := self._load(self.folder, stem))), None)

    def _similar(self) -> Iterator[str]:
        """Files of Megatron's own tools, which know a tokenizer, that changes nothing here."""
        wanted = _without_tokenizer(json.loads(self.description))
        ending = f"-{self.kind}-{self.part}-description.txt"
        for path in sorted(self.folder.glob(f"*{ending}")):
            with suppress(OSError, ValueError, RecursionError):
                small = path.stat().st_size <= _LARGEST_DESCRIPTION
                if small and _without_tokenizer(json.loads(path.read_text(encoding="utf-8"))) == wanted:
                    yield path.name.removesuffix("-description.txt")

    def _load(self, folder: Path, stem: str) -> Arrays | None:
        arrays = {}
        for name, (shape, dtypes) in self.specs.items():
            path = folder / f"{stem}-{name}.npy"
            try:
                array = _mapped(path)
            except FileNotFoundError:
                return None
            except (OSError, ValueError) as error:
                logger.warning("%s is made anew: %s", path, error)
                return None
            if array.shape != shape or array.dtype not in dtypes:
                logger.warning("%s is made anew: it does not belong to the dataset as it is now", path)
                return None
            arrays[name] = array
        return arrays

    def _build_in(self, folder: Path | None, build: Callable[[Arrays], None]) -> Arrays:
        """Beside the place where they go, on the same disk; or, without a folder, in one that is gone at once."""
        staging = Path(tempfile.mkdtemp(dir=folder, prefix=".indices-"))
        try:
            stem = self._stem()
            paths = {name: staging / f"{stem}-{name}.npy" for name in self.specs}
            arrays = {name: _created(paths[name], shape, dtypes[0]) for name, (shape, dtypes) in self.specs.items()}
            build(arrays)
            if folder is not None:
                del arrays
                for path in paths.values():  # no name before what it names is on the disk
                    _sync(path)
                description = staging / f"{stem}-description.txt"
                description.write_text(self.description, encoding="utf-8")
                for path in (*paths.values(), description):  # who sees the description sees the others
                    path.replace(folder / path.name)
            mapped = {name: _mapped((folder or staging) / path.name) for name, path in paths.items()}
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return mapped


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _without_tokenizer(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tokenizer(item) for key, item in value.items() if key != "tokenizer"}
    return [_without_tokenizer(item) for item in value] if isinstance(value, list) else value


def _created(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array in a new file that has its place on the disk already: a full disk is an error, not the end."""
    with path.open("w+b") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        begin = file.tell()
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size == 0:
            return np.empty(shape, dtype)
        file.flush()
        os.posix_fallocate(file.fileno(), begin, size)
        mapped: NDArray[Any] = np.memmap(file, dtype=dtype, mode="r+", offset=begin, shape=shape)
    return mapped.view(np.ndarray)


def _mapped(path: Path) -> NDArray[Any]:
    """The array of a ``.npy`` file of numbers. Numpy itself runs its header through Python's parser.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is no such file, or cut off.
    """
    with path.open("rb") as file:
        magic = file.read(len(_MAGIC) + 2)
        if magic[: len(_MAGIC)] != _MAGIC or magic[len(_MAGIC) :] not in (b"\1\0", b"\2\0"):
            raise ValueError("it is no file of numpy's")
        size = int.from_bytes(file.read(2 if magic[-2] == 1 else 4), "little")
        found = _HEADER.fullmatch(file.read(min(size, _LONGEST_HEADER)))
        if found is None:
            raise ValueError("its header is not one of an array of integers")
        dtype, shape = np.dtype(found[1].decode()), tuple(int(word) for word in found[2].split(b",") if word.strip())
        begin, count = file.tell(), math.prod(shape)
        if begin + count * dtype.itemsize > path.stat().st_size:
            raise ValueError("it is cut off")
        if count == 0:
            return np.empty(shape, dtype)
        mapped: NDArray[Any] = np.memmap(file, dtype=dtype, mode="r", offset=begin, shape=shape)
    return mapped.view(np.ndarray)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process of a machine at a time; where the file system has no locks, as many as come."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
