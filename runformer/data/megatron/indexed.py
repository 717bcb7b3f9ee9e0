"""Reading indexed datasets, straight from the memory map of their two files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runformer.data.megatron.layout import (
    DOCUMENT,
    DTYPES,
    HEADER,
    LENGTH,
    MAGIC,
    MODE,
    POINTER,
    VERSION,
    data_path,
    index_path,
)
from runformer.errors import DataError

_CHUNK = 1 << 18  # sequences that are looked at at once
_AGAIN = "copy both files again, or make the dataset anew"


class IndexedDataset:
    """The sequences of ``PREFIX.bin`` and ``PREFIX.idx``. What is in the files is checked, but for the tokens.

    Args:
        prefix: the path of both files, without their endings.

    Attributes:
        dtype: of the tokens.
        lengths: tokens in each sequence; int32, (S,).
        documents: first sequence of each document, and S behind the last; int64.
        modes: of each sequence of a multimodal dataset; int8, (S,), or None.
        tokens: of all sequences, one after the other.

    Raises:
        DataError: a file is not there, is damaged, or does not belong to the other.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.name = str(prefix)
        self._index = index_path(prefix)
        mapped = _mapped(self._index)
        self.dtype, sequences, documents = self._read_header(mapped)
        sizes = (sequences * LENGTH.itemsize, sequences * POINTER.itemsize, documents * DOCUMENT.itemsize)
        ends = [HEADER.size + sum(sizes[:count]) for count in range(4)]
        if mapped.size not in (ends[3], ends[3] + sequences * MODE.itemsize):
            message = f"{self._index} has {mapped.size} bytes, but {sequences} sequences and {documents - 1} documents"
            raise DataError(f"{message} take {ends[3]}: it is cut off or damaged", hint=_AGAIN)
        self.lengths: NDArray[np.int32] = mapped[ends[0] : ends[1]].view(LENGTH)
        self._pointers: NDArray[np.int64] = mapped[ends[1] : ends[2]].view(POINTER)
        self.documents: NDArray[np.int64] = mapped[ends[2] : ends[3]].view(DOCUMENT)
        self.modes: NDArray[np.int8] | None = mapped[ends[3] :].view(MODE) if mapped.size > ends[3] else None
        self._check_sequences(_mapped(data_path(prefix)))
        self._check_documents()

    def _read_header(self, mapped: NDArray[np.uint8]) -> tuple[np.dtype[Any], int, int]:
        """The dtype and the numbers of sequences and document indices."""
        head = mapped[: HEADER.size].tobytes()
        if head[: len(MAGIC)] != MAGIC[: len(head)] or not head:
            message = f"{self._index} is no index of Megatron-LM's: it begins with {head[: len(MAGIC)]!r}"
            raise DataError(message, hint=f"it should begin with {MAGIC!r}")
        if len(head) < HEADER.size:
            raise DataError(f"{self._index} is cut off: it has {len(head)} bytes", hint=_AGAIN)
        _, version, code, sequences, documents = HEADER.unpack(head)
        if version != VERSION:
            raise DataError(f"{self._index} has version {version} of the format; only {VERSION} is known")
        if code not in DTYPES:
            known = ", ".join(f"{number} {dtype}" for number, dtype in DTYPES.items())
            raise DataError(f"{self._index} says that tokens have dtype {code}, which is not known: {known}")
        return DTYPES[code], sequences, documents

    def _check_sequences(self, data: NDArray[np.uint8]) -> None:
        """All of the data belongs to sequences, each of which begins where the one before ends."""
        place = 0
        for first in range(0, len(self), _CHUNK):
            lengths = self.lengths[first : first + _CHUNK]
            pointers = self._pointers[first : first + _CHUNK]
            ends = place + np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
            expected = np.concatenate(([place], ends[:-1]))
            wrong = np.flatnonzero((lengths < 0) | (pointers != expected))
            if wrong.size:
                at = int(wrong[0])
                text = f"{self._index}, sequence {first + at}: {lengths[at]} tokens at byte {pointers[at]}"
                raise DataError(f"{text}, where the one before ends at {expected[at]}: it is damaged", hint=_AGAIN)
            place = int(ends[-1])
        if place != data.size:
            message = f"{data_path(self.name)} has {data.size} bytes, but {self._index.name} describes {place}"
            raise DataError(f"{message}: one is cut off or damaged, or they are of two datasets", hint=_AGAIN)
        self.tokens: NDArray[Any] = data.view(self.dtype)

    def _check_documents(self) -> None:
        last = 0
        for first in range(0, len(self.documents), _CHUNK):
            chunk = self.documents[first : first + _CHUNK]
            wrong = np.flatnonzero(np.diff(chunk, prepend=last) < 0)
            if wrong.size or (first == 0 and chunk[0] != 0):
                at = int(wrong[0]) if wrong.size else 0
                text = f"{self._index}, document {first + at}: it begins with sequence {chunk[at]}"
                raise DataError(f"{text}, behind which the one before begins: it is damaged", hint=_AGAIN)
            last = int(chunk[-1])
        if last != len(self):
            message = f"{self._index}: its documents end with sequence {last}, its sequences with {len(self)}"
            raise DataError(f"{message}: it is damaged", hint=_AGAIN)

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self.lengths)

    def __getitem__(self, sequence: int) -> NDArray[Any]:
        """The tokens of one sequence: a view of the file.

        Raises:
            IndexError: there is none of this number.
        """
        if not 0 <= sequence < len(self):
            raise IndexError(f"{self.name} has {len(self)} sequences; there is no number {sequence}")
        begin = int(self._pointers[sequence]) // self.dtype.itemsize
        return self.tokens[begin : begin + int(self.lengths[sequence])]

    def begins(self, sequences: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Where sequences begin in ``tokens``: int64, of the same shape."""
        places: NDArray[np.int64] = self._pointers[sequences] // self.dtype.itemsize
        return places


def _mapped(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file. Nothing is read before it is looked at."""
    try:
        if path.stat().st_size == 0:
            return np.empty(0, dtype=np.uint8)
        mapped: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
    except FileNotFoundError as error:
        hint = "the path of a Megatron dataset is written without .bin and .idx, and both files must be there"
        raise DataError(f"{path} is not there", hint=hint) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return mapped.view(np.ndarray)
