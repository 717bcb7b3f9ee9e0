"""Files that have a hash for every chunk: what is read is compared before it is given out."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path

import xxhash

from runformer.checkpoint.manifest import FileRecord
from runformer.config.task import Verify
from runformer.errors import DamageError

HINT = "resume from an older checkpoint, or copy this one again"
_SAMPLED = 16  # of so many chunks one is compared where samples are asked for


class ChunkBuffer:
    """Memory for one chunk, of whichever file it was last."""

    def __init__(self, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self.holds: tuple[Path, int] | None = None
        self._memory = bytearray()

    def room(self, count: int) -> memoryview:
        """Room for so many bytes, whatever they hold."""
        if len(self._memory) < count:
            self._memory = bytearray(count)
        return memoryview(self._memory)[:count]


class ChunkedFile:
    """A file of a checkpoint.

    Args:
        path: where it is.
        record: its length and hashes.
        buffer: for a chunk of which only some is wanted; files share it.
        verify: which chunks are compared with their hashes: all, some or none. The length always is.
        held: what the bytes between two positions hold, to end a message with.

    Raises:
        DamageError: it is missing, or of another length.
    """

    def __init__(
        self, path: Path, record: FileRecord, buffer: ChunkBuffer, verify: Verify, held: Callable[[int, int], str]
    ) -> None:
        self._path, self._record = path, record
        self._buffer, self._chunk_bytes = buffer, buffer.chunk_bytes
        self._verify, self._held = verify, held
        try:
            self._file = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            size = os.fstat(self._file).st_size
        except OSError as error:
            text = f"{path}: cannot be read: {error.strerror}{held(0, record.size)}"
            raise DamageError(text, hint=HINT) from None
        if size != record.size:
            text = (
                f"{path}: {size} bytes long, but {record.size} were written{held(min(size, record.size), record.size)}"
            )
            raise DamageError(text, hint=HINT)

    def read_into(self, begin: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes from ``begin`` on.

        Raises:
            DamageError: they are not those that were written, or cannot be read.
        """
        end, size = begin + len(out), self._chunk_bytes
        for number in range(begin // size, -(-end // size)):
            low, high = number * size, min((number + 1) * size, self._record.size)
            first, last = max(low, begin), min(high, end)
            target = out[first - begin : last - begin]
            if (first, last) == (low, high) and self._buffer.holds != (self._path, number):
                self._read_chunk(number, target)
            elif self._checks(number):
                target[:] = self._chunk(number)[first - low : last - low]
            else:
                self._read(first, target)

    def verify(self) -> None:
        """Compare every chunk with its hash.

        Raises:
            DamageError: one differs; names it and what it holds.
        """
        self._buffer.holds = None
        for number in range(len(self._record.chunks)):
            self._read_chunk(number, self._buffer.room(self._length(number)), always=True)

    def _checks(self, number: int) -> bool:
        if self._verify == "sample":
            return number % _SAMPLED == 0 or number == len(self._record.chunks) - 1
        return self._verify == "full"

    def _chunk(self, number: int) -> memoryview:
        """A chunk of which only some is wanted; the next wish is likely for more of it."""
        room = self._buffer.room(self._length(number))
        if self._buffer.holds != (self._path, number):
            self._buffer.holds = None
            self._read_chunk(number, room)
            self._buffer.holds = self._path, number
        return room

    def _length(self, number: int) -> int:
        return min(self._chunk_bytes, self._record.size - number * self._chunk_bytes)

    def _read_chunk(self, number: int, out: memoryview, *, always: bool = False) -> None:
        begin = number * self._chunk_bytes
        self._read(begin, out)
        if (always or self._checks(number)) and xxhash.xxh3_128_hexdigest(out) != self._record.chunks[number]:
            held = self._held(begin, begin + self._chunk_bytes)
            raise DamageError(f"{self._path}: damaged in chunk {number}{held}", hint=HINT)

    def _read(self, begin: int, out: memoryview) -> None:
        done = 0
        try:
            while done < len(out):
                count = os.preadv(self._file, [out[done:]], begin + done)
                if not count:
                    raise OSError(0, "it ends early")
                done += count
        except OSError as error:
            text = f"{self._path}: cannot be read at byte {begin + done}: {error.strerror}"
            raise DamageError(f"{text}{self._held(begin, begin + len(out))}", hint=HINT) from None
