"""MindSpore's ``.ckpt`` files: a message for every tensor, or for every 512 MiB of one.

``Checkpoint { repeated Value value = 1 }``, ``Value { string tag = 1; TensorProto tensor = 2 }``, ``TensorProto
{ repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }``; numbers are little-endian, in C order.
A file may end with ``crc_num`` and ten bytes, the CRC-32 of all before.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from runformer.checkpoint.foreign.protobuf import Field, fields, numbers, text
from runformer.checkpoint.manifest import ITEM_BYTES
from runformer.checkpoint.tensors import TYPES
from runformer.errors import CheckpointError, DamageError
from runformer.models.part import Box, Span

TYPES_THERE = {
    **{f"Int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"UInt{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"Float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "BFloat16": "BF16",
    "Bool": "BOOL",
}
"""safetensors' name of each of MindSpore's types."""

_TEXT = "str"
_CHECKSUM, _CHECKSUM_BYTES = b"crc_num", 10
_AT_ONCE = 16 << 20


@dataclass(slots=True)
class _Entry:
    shape: tuple[int, ...]
    kind: str
    spans: list[Span]


class CkptFile:
    """A ``.ckpt`` file to read from: what it holds is looked up when it is opened, and only what is asked for is read.

    Raises:
        CheckpointError: it is missing, encrypted, or no such file.
        DamageError: it is cut short, or its checksum is another.
    """

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        self.path = path
        self._entries: dict[str, _Entry] = {}
        try:
            self._file = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            size = os.fstat(self._file).st_size
            if size:
                with mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) as memory, memoryview(memory) as view:
                    self._index(view, self._content_end(view, verify))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}", hint="check the path") from None
        if not self._entries:
            raise CheckpointError(f"{path}: holds no tensor", hint="is it a MindSpore checkpoint, and not encrypted?")
        for name, entry in self._entries.items():
            self._require_size(name, entry)
        self.names = tuple(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """The type of one tensor, as safetensors calls it (``F32``, ``BF16``)."""
        return self._entries[name].kind

    def read(self, name: str, box: Box) -> Tensor:
        """A box of one tensor, on the CPU; whole rows of it are read."""
        entry = self._entries[name]
        if entry.kind not in TYPES:
            raise CheckpointError(f"{self.path}: the tensor {name} has the type {entry.kind}, which cannot be read")
        shape, box = (entry.shape, box) if entry.shape else ((1,), Box((0,), (1,)))
        row = math.prod(shape[1:]) * ITEM_BYTES[entry.kind]
        rows = torch.empty((box.shape[0] * row,), dtype=torch.uint8)
        self._read(entry, box.offset[0] * row, rows.numpy().data)
        tensor = rows.view(TYPES[entry.kind]).view(box.shape[0], *shape[1:])
        found = tensor[(slice(None), *box.place[1:])]
        return found if entry.shape else found.view(())

    def _read(self, entry: _Entry, begin: int, out: memoryview) -> None:
        """Bytes of a tensor, wherever its parts lie."""
        end, at = begin + len(out), 0
        for low, high in entry.spans:
            first, last = max(begin, at), min(end, at + high - low)
            while first < last:
                count = os.preadv(self._file, [out[first - begin : last - begin]], low + first - at)
                if not count:
                    raise DamageError(f"{self.path}: ends early", hint="copy it again")
                first += count
            at += high - low

    def _content_end(self, view: memoryview, verify: bool) -> int:
        """Where the messages end; the checksum behind them is compared, where there is one."""
        end = len(view) - len(_CHECKSUM) - _CHECKSUM_BYTES
        if end < 0 or bytes(view[end : end + len(_CHECKSUM)]) != _CHECKSUM:
            return len(view)
        if verify:
            found = 0
            for begin in range(0, end, _AT_ONCE):
                found = zlib.crc32(view[begin : min(end, begin + _AT_ONCE)], found)
            if found != int.from_bytes(view[-_CHECKSUM_BYTES:], "big"):
                raise DamageError(f"{self.path}: damaged: its checksum does not fit its content", hint="copy it again")
        return end

    def _index(self, view: memoryview, end: int) -> None:
        where = str(self.path)
        for value in fields(view, 0, end, where):
            name, tensor = "", None
            for field in fields(view, value.begin, value.end, where) if value.number == 1 and value.is_bytes else ():
                name = text(view, field, where) if field.number == 1 else name
                tensor = field if field.number == 2 and field.is_bytes else tensor
            if tensor is None:
                raise CheckpointError(
                    f"{where}: not a MindSpore checkpoint", hint="is it encrypted, or another kind of file?"
                )
            self._add(name, *self._tensor(view, tensor, where))

    def _tensor(self, view: memoryview, tensor: Field, where: str) -> tuple[tuple[int, ...], str, Span]:
        dims: list[int] = []
        kind, span = "", (0, 0)
        for field in fields(view, tensor.begin, tensor.end, where):
            if field.number == 1:
                dims += numbers(view, field, where)
            elif field.number == 2:
                kind = text(view, field, where)
            elif field.is_bytes:
                span = field.begin, field.end
        return tuple(dims), kind, span

    def _add(self, name: str, shape: tuple[int, ...], kind: str, span: Span) -> None:
        if kind == _TEXT:
            return
        entry = self._entries.setdefault(name, _Entry(shape, TYPES_THERE.get(kind, kind), []))
        if (entry.shape, entry.kind) != (shape, TYPES_THERE.get(kind, kind)):
            raise DamageError(f"{self.path}: {name} is there twice, of two shapes or types", hint="copy it again")
        entry.spans.append(span)

    def _require_size(self, name: str, entry: _Entry) -> None:
        held, item = sum(end - begin for begin, end in entry.spans), ITEM_BYTES.get(entry.kind)
        if entry.shape == (0,) and held == item:
            entry.shape = ()  # so some versions write a single number
        if item is not None and (min(entry.shape, default=0) < 0 or math.prod(entry.shape) * item != held):
            text = f"{name} has {held} bytes, its shape {entry.shape} of {entry.kind} needs others"
            raise DamageError(f"{self.path}: {text}", hint="copy it again")
