"""Writing safetensors files that are hashed on their way to the disk, and opening any with clean errors.

The format: eight bytes with the length of a JSON header (little-endian), the header, which names each
tensor's type, shape and place, then the tensors' bytes (little-endian, C order, no gaps).
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runformer.checkpoint.manifest import ITEM_BYTES, FileRecord, TensorRecord
from runformer.errors import CheckpointError
from runformer.observe.pulse import pulse

TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""safetensors' name of each type that can be written."""

REMAP_BYTES = 64 << 20
"""A file is mapped anew after so much was read from it, so that loading takes little more than one tensor."""


class HashedWriter:
    """Writes a new file and hashes each of its chunks in passing. As a context manager it ends on the disk."""

    def __init__(self, path: Path, chunk_bytes: int) -> None:
        self._file = path.open("xb")
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
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``, a flat run of bytes."""
        view = memoryview(data)
        while view:
            piece = view[: self._chunk_bytes - self._in_chunk]
            self._hasher.update(piece)
            self._file.write(piece)
            self._in_chunk += len(piece)
            self.position += len(piece)
            if self._in_chunk == self._chunk_bytes:
                self._end_chunk()
            view = view[len(piece) :]

    def record(self) -> FileRecord:
        """What was written; nothing more can be."""
        if self._in_chunk:
            self._end_chunk()
        return FileRecord(self.position, tuple(self._hashes))

    def _end_chunk(self) -> None:
        self._hashes.append(self._hasher.hexdigest())
        self._hasher.reset()
        self._in_chunk = 0


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], chunk_bytes: int
) -> tuple[FileRecord, dict[str, TensorRecord]]:
    """Write a safetensors file; at most one tensor at a time is copied (from a device, or into C order).

    Raises:
        CheckpointError: a tensor's type cannot be stored.
        OSError: the disk is full or the directory is not there.
    """
    header, layout = _plan(path.name, tensors)
    with HashedWriter(path, chunk_bytes) as writer:
        writer.write(header)
        for name in layout:
            writer.write(_bytes_of(tensors[name]))
            pulse().refresh()  # the other ranks wait, and a launcher should see that it goes on
        record = writer.record()
    return record, layout


def _plan(file_name: str, tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, TensorRecord]]:
    """The header, and each tensor's place in the file, in the order of writing."""
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPE_NAMES:
            raise CheckpointError(f"the tensor {name} has the type {tensor.dtype}, which no checkpoint can hold")
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # Widest elements first: so every tensor is aligned to its element, however many odd ones there are.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    for name in names:
        end = offset + tensors[name].nbytes
        kind = TYPE_NAMES[tensors[name].dtype]
        entries[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    layout = {name: _record(file_name, entries[name], start) for name in names}
    return len(text).to_bytes(8, "little") + text, layout


def _record(file_name: str, entry: dict[str, Any], start: int) -> TensorRecord:
    begin, end = entry["data_offsets"]
    return TensorRecord(file_name, entry["dtype"], tuple(entry["shape"]), start + begin, start + end)


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def some(names: Iterable[str]) -> str:
    """The first few of many names, to put into a sentence."""
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


class NamedTensors(Mapping[str, Tensor]):
    """Stored tensors by name, each read from the disk when it is asked for, to the CPU.

    Args:
        index: what is known of each without reading it, by name.
    """

    def __init__(self, index: Mapping[str, object]) -> None:
        self._index = index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index  # Mapping's own would read the tensor

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor; reads no data."""

    @abstractmethod
    def origin(self, name: str) -> str:
        """Where one tensor lies, for messages."""


class TensorFile:
    """A safetensors file to read from, mapped into memory: only what is asked for is read.

    Raises:
        CheckpointError: the file is missing, truncated or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._open()
        self._mapped_bytes = 0
        self.names: tuple[str, ...] = tuple(self._checked(self._file.keys))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return tuple(self._checked(lambda: self._file.get_slice(name).get_shape()))

    def dtype(self, name: str) -> str:
        """The type of one tensor, as safetensors calls it (``F32``, ``BF16``)."""
        return str(self._checked(lambda: self._file.get_slice(name).get_dtype()))

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU; its memory is the file's."""
        # Pages that were read stay in this process's memory for as long as their mapping does.
        if self._mapped_bytes > REMAP_BYTES:
            self._file, self._mapped_bytes = self._open(), 0
        if self.dtype(name) not in ITEM_BYTES:
            raise CheckpointError(
                f"{self.path}: the tensor {name} has the type {self.dtype(name)}, which cannot be read",
                hint="quantised weights are not supported: take float32, bfloat16 or float16 ones",
            )
        tensor: Tensor = self._checked(lambda: self._file.get_tensor(name))
        self._mapped_bytes += tensor.nbytes
        return tensor

    def _open(self) -> Any:
        return self._checked(lambda: safe_open(self.path, framework="pt", device="cpu"))

    def _checked(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except FileNotFoundError:
            raise CheckpointError(f"{self.path}: there is no such file", hint="check the path") from None
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.path}: not a whole safetensors file: {error}", hint="copy or download it again"
            ) from None
