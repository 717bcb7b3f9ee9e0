"""Reading our checkpoints: no byte reaches the model that is not the byte which was written."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runformer.checkpoint.chunks import HINT, ChunkBuffer, ChunkedFile
from runformer.checkpoint.layout import COMMON, MANIFEST
from runformer.checkpoint.manifest import Manifest, SliceRecord
from runformer.checkpoint.tensors import TYPES, NamedTensors, some
from runformer.config.task import Verify
from runformer.errors import CheckpointError, DamageError
from runformer.models.part import Box

_BUFFER_BYTES = 16 << 20
_OPEN_FILES = 64  # at most, of the many that many ranks have written


class Checkpoint(NamedTensors):
    """One checkpoint: a mapping of names to tensors, of each of which any box is read when it is asked for.

    What is read is compared with its hash as ``verify`` says. Parameters have their own names, Adam's moments have
    them after ``exp_avg.`` and ``exp_avg_sq.``.
    """

    def __init__(self, path: Path, manifest: Manifest, verify: Verify = "full") -> None:
        super().__init__(manifest.tensors)
        self.path = path
        self._manifest = manifest
        self._level: Verify = verify
        self._buffer = ChunkBuffer(manifest.chunk_bytes)
        self._files: dict[str, ChunkedFile] = {}
        self._begins: dict[str, int] = {}  # of the first tensor in each file
        for part in (part for tensor in manifest.tensors.values() for part in tensor.slices):
            self._begins[part.file] = min(part.begin, self._begins.get(part.file, part.begin))

    @property
    def common(self) -> dict[str, Any]:
        """``common.json``: step, position in the data and the like."""
        content = bytearray(self._manifest.files[COMMON].size)
        self._file(COMMON).read_into(0, memoryview(content))
        common: dict[str, Any] = json.loads(content)
        return common

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor; reads nothing."""
        return self._manifest.tensors[name].shape

    def kind(self, name: str) -> str:
        """The type of one tensor; reads nothing."""
        return self._manifest.tensors[name].dtype

    def origin(self, name: str) -> str:
        """The files that hold a tensor."""
        return str(self.path / some({part.file: None for part in self._manifest.tensors[name].slices}))

    def read(self, name: str, box: Box) -> Tensor:
        """A box of one tensor, on the CPU."""
        out = torch.empty(box.shape, dtype=TYPES[self.kind(name)])
        self.fill(name, box, out)
        return out

    def fill(self, name: str, box: Box, out: Tensor) -> None:
        """Copy a box of one tensor into ``out``; straight into its memory where it is that of the stored one."""
        dtype, found = TYPES[self.kind(name)], 0
        for part in self._manifest.tensors[name].slices:
            common = part.box.meet(box)
            if common is not None:
                self._copy(part, common.inside(part.box), out[common.inside(box).place], dtype)
                found += common.numel
        if found != box.numel:
            raise DamageError(f"{self.path / MANIFEST}: not all of {name} is in the files", hint=HINT)

    def _copy(self, part: SliceRecord, box: Box, out: Tensor, dtype: torch.dtype) -> None:
        """Copy a box of one slice: rows of it at once, as many as a buffer has room for."""
        file, item_bytes = self._file(part.file), dtype.itemsize
        shape = part.box.shape
        if not shape:
            box, shape, out = Box((0,), (1,)), (1,), out.view(1)
        row_bytes = math.prod(shape[1:]) * item_bytes
        first = part.begin + box.offset[0] * row_bytes
        whole_rows = box.shape[1:] == shape[1:]
        if whole_rows and out.device.type == "cpu" and out.dtype == dtype and out.is_contiguous():
            file.read_into(first, _memory(out))
            return
        rows = max(1, _BUFFER_BYTES // max(1, row_bytes))
        buffer = torch.empty((min(rows, box.shape[0]), *shape[1:]), dtype=dtype)
        columns = Box((0, *box.offset[1:]), (0, *box.shape[1:]))
        for begin in range(0, box.shape[0], rows):
            count = min(rows, box.shape[0] - begin)
            file.read_into(first + begin * row_bytes, _memory(buffer[:count]))
            out[begin : begin + count].copy_(buffer[columns.along(0, 0, count).place])

    def verify(self) -> None:
        """Compare the hash of every chunk of every file.

        Raises:
            DamageError: one differs, or a file is missing, cut short or too long; names file, chunk and tensor.
        """
        for name in self._manifest.files:
            self._file(name).verify()

    def _file(self, name: str) -> ChunkedFile:
        """A file, opened once; with the bytes before its first tensor, which say what it holds, compared."""
        if name not in self._files:
            while len(self._files) >= _OPEN_FILES:
                self._files.pop(next(iter(self._files)))
            held = partial(_held, self._manifest, name)
            file = ChunkedFile(self.path / name, self._manifest.files[name], self._buffer, self._level, held)
            file.read_into(0, memoryview(bytearray(self._begins.get(name, 0))))
            self._files[name] = file
        return self._files[name]


def _held(manifest: Manifest, file: str, begin: int, end: int) -> str:
    """What bytes ``begin`` to ``end`` of a file hold, to end a sentence with."""
    touched = [
        name
        for name, tensor in manifest.tensors.items()
        if any(part.file == file and part.begin < end and begin < part.end for part in tensor.slices)
    ]
    return f", where {some(touched)} should be" if touched else ""


def _memory(tensor: Tensor) -> memoryview:
    return tensor.detach().view(-1).view(torch.uint8).numpy().data


def open_checkpoint(path: Path, verify: Verify = "full") -> Checkpoint:
    """Open the checkpoint directory ``path``; reads only its manifest.

    Raises:
        CheckpointError: there is none.
        DamageError: its manifest is damaged.
    """
    where = path / MANIFEST
    try:
        text = where.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no complete checkpoint here ({MANIFEST} is missing)",
            hint="give the folder of a checkpoint, like output/checkpoint/iteration_00000016",
        ) from None
    except (OSError, ValueError) as error:
        raise DamageError(f"{where}: damaged: {error}", hint=HINT) from None
    return Checkpoint(path, Manifest.from_json(text, str(where)), verify)
