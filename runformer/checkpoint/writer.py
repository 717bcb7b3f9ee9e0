"""Writing safetensors files that are hashed on their way to the disk.

The format: eight bytes with the length of a JSON header (little-endian), the header, which names each
tensor's type, shape and place, then the tensors' bytes (little-endian, C order, no gaps).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import xxhash
from torch import Tensor

from runformer.checkpoint.manifest import FileRecord, SliceRecord, TensorRecord
from runformer.checkpoint.pieces import Piece
from runformer.checkpoint.tensors import TYPE_NAMES
from runformer.errors import CheckpointError

_LIBRARY = ctypes.CDLL(None, use_errno=True)
_DISK_BYTES = 64 << 20  # so much is sent on to the disk at once, while more is hashed and written


class HashedWriter:
    """Writes a new file of ``size`` bytes and hashes each of its chunks in passing.

    As a context manager it ends on the disk.

    Raises:
        OSError: the file is there, or the disk has no room for all of it.
    """

    def __init__(self, path: Path, chunk_bytes: int, size: int) -> None:
        self._file = path.open("xb", buffering=0)
        try:
            _take_room(self._file.fileno(), size)
        except OSError:
            self._file.close()
            raise
        self._disk = _Disk(self._file.fileno())
        self._chunk_bytes = chunk_bytes
        self._hashes: list[str] = []
        self._hasher = xxhash.xxh3_128()
        self._in_chunk = 0
        self.position = 0

    def __enter__(self) -> HashedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self._disk.finish()
            if kind is None:
                os.fsync(self._file.fileno())

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``, a flat run of bytes."""
        view = memoryview(data)
        while view:
            piece = view[: self._chunk_bytes - self._in_chunk]
            self._hasher.update(piece)
            self._write(piece)
            self._in_chunk += len(piece)
            self.position += len(piece)
            if self._in_chunk == self._chunk_bytes:
                self._end_chunk()
            view = view[len(piece) :]

    def _write(self, piece: memoryview) -> None:
        written = 0
        while written < len(piece):
            written += self._file.write(piece[written:])
        self._disk.written(len(piece))

    def record(self) -> FileRecord:
        """What was written; nothing more can be."""
        if self._in_chunk:
            self._end_chunk()
        return FileRecord(self.position, tuple(self._hashes))

    def _end_chunk(self) -> None:
        self._hashes.append(self._hasher.hexdigest())
        self._hasher.reset()
        self._in_chunk = 0


def _take_room(descriptor: int, size: int) -> None:
    """Let a file have its room on the disk before it is written: in one piece, and a disk that is full says so now.

    Not by ``os.posix_fallocate``, which writes to every block where a file system cannot do that.
    """
    if size == 0 or not hasattr(_LIBRARY, "fallocate64"):
        return
    failed = _LIBRARY.fallocate64(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size))
    if failed and ctypes.get_errno() in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class _Disk:
    """Lets the disk write what a file already has, which the system by itself would put off until it is waited for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting = 0
        self._thread: ThreadPoolExecutor | None = None
        self._sending: Future[None] | None = None

    def written(self, count: int) -> None:
        """So many bytes more are in the file.

        Raises:
            OSError: earlier ones cannot be written.
        """
        self._waiting += count
        if self._waiting < _DISK_BYTES or not (self._sending is None or self._sending.done()):
            return
        if self._sending is not None:
            self._sending.result()
        self._thread = self._thread or ThreadPoolExecutor(1, "disk")
        self._sending, self._waiting = self._thread.submit(os.fdatasync, self._descriptor), 0

    def finish(self) -> None:
        """Wait for what is under way, before the file is closed.

        Raises:
            OSError: it cannot be written.
        """
        if self._thread is not None:
            self._thread.shutdown()
        if self._sending is not None:
            self._sending.result()


def write_pieces(
    path: Path, pieces: Sequence[Piece], chunk_bytes: int, progress: Callable[[], None]
) -> tuple[FileRecord, dict[str, TensorRecord]]:
    """Write a safetensors file; at most one tensor at a time is copied (from a device, or into C order).

    ``progress`` is called after each.

    Raises:
        CheckpointError: a tensor's type cannot be stored.
        OSError: the disk is full or the directory is not there.
    """
    for piece in pieces:
        if piece.tensor.dtype not in TYPE_NAMES:
            text = f"the tensor {piece.name} has the type {piece.tensor.dtype}, which no checkpoint can hold"
            raise CheckpointError(text)
    # Widest elements first: so every tensor is aligned to its element, however many odd ones there are.
    pieces = sorted(pieces, key=lambda piece: -piece.tensor.itemsize)
    header = _header(pieces)
    tensors: dict[str, TensorRecord] = {}
    size = len(header) + sum(piece.tensor.nbytes for piece in pieces)
    with HashedWriter(path, chunk_bytes, size) as writer:
        writer.write(header)
        for piece in pieces:
            begin = writer.position
            writer.write(_bytes_of(piece.tensor))
            written = SliceRecord(path.name, piece.box, begin, writer.position)
            before = tensors[piece.name].slices if piece.name in tensors else ()
            tensors[piece.name] = TensorRecord(TYPE_NAMES[piece.tensor.dtype], piece.shape, (*before, written))
            progress()
        record = writer.record()
    return record, tensors


def _header(pieces: Sequence[Piece]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for piece in pieces:
        kind, end = TYPE_NAMES[piece.tensor.dtype], offset + piece.tensor.nbytes
        entries[piece.key] = {"dtype": kind, "shape": list(piece.tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().reshape(-1).view(torch.uint8)
    return flat.numpy().data
