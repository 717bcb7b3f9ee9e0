"""What each of the processes that save together writes, and how the first of them hears of it.

Everyone's files lie in one directory, which has its final name once all of them are on the disk. Beside its tensors a
process leaves a manifest of them, and the first one puts these together. It finds them only if all see one disk.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from runformer.checkpoint.layout import COMMON, MANIFEST
from runformer.checkpoint.manifest import FileRecord, Manifest, TensorRecord, merged
from runformer.checkpoint.pieces import Piece, whole_pieces
from runformer.checkpoint.writer import HashedWriter, write_pieces

CHUNK_BYTES = 1 << 20
"""Length of the pieces of a file that have a hash each: damage is found and named to this precision.

Whoever needs some bytes reads all of their chunks: with large ones many ranks would each read most of every file.
"""


@dataclass(frozen=True, slots=True)
class TrainingState:
    """All that a run needs to go on as if it had never stopped; of its tensors what this process writes.

    Attributes:
        model: parameters.
        optimizer: its tensors, of AdamW ``exp_avg.<parameter>`` and ``exp_avg_sq.<parameter>``; none before an update.
        common: what JSON can hold; ``step`` (updates so far) must be there.
    """

    model: Sequence[Piece]
    optimizer: Sequence[Piece]
    common: Mapping[str, Any]

    @classmethod
    def whole(
        cls, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], common: Mapping[str, Any]
    ) -> TrainingState:
        """The state of a process that has all of it."""
        return cls(whole_pieces(model), whole_pieces(optimizer), common)

    @property
    def step(self) -> int:
        """Steps done when this was the state."""
        return int(self.common["step"])


@dataclass(frozen=True, slots=True)
class Writer:
    """One of ``size`` processes that save together; its files' names begin with ``prefix``."""

    prefix: str
    rank: int
    size: int

    def write(self, directory: Path, state: TrainingState, progress: Callable[[], None]) -> Manifest:
        """Write this process's files; what they hold. ``progress`` is called after every tensor.

        Raises:
            CheckpointError: a tensor cannot be stored.
            OSError: the disk is full, or the directory is not to be seen here.
        """
        files: dict[str, FileRecord] = {}
        tensors: dict[str, TensorRecord] = {}
        for kind, pieces in (("model", state.model), ("opt", state.optimizer)):
            if pieces or self.size == 1:
                name = f"{self.prefix}-{kind}-{self.rank:07d}-{self.size:07d}.safetensors"
                files[name], written = write_pieces(directory / name, pieces, CHUNK_BYTES, progress)
                tensors |= written
        if self.rank == 0:
            common = json.dumps(dict(state.common), indent=1, allow_nan=False) + "\n"
            files[COMMON] = _write_text(directory / COMMON, common)
        manifest = Manifest(CHUNK_BYTES, files, tensors)
        if self.rank:
            _write_text(directory / _part(self.rank), manifest.to_json())
        return manifest

    def put_together(self, directory: Path, own: Manifest) -> None:
        """Write the manifest of all processes' files; ``own`` is that of the first, which does it.

        Raises:
            OSError: the disk is full, or some process's files are not to be seen here.
        """
        others = range(1, self.size)
        manifest = merged([own, *(_read_part(directory, rank) for rank in others)])
        for rank in others:
            (directory / _part(rank)).unlink()
        _write_text(directory / MANIFEST, manifest.to_json())


def _part(rank: int) -> str:
    return f".rank_{rank}.json"


def _read_part(directory: Path, rank: int) -> Manifest:
    path = directory / _part(rank)
    try:
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"), str(path), whole=False)
        if all((directory / name).stat().st_size == file.size for name, file in manifest.files.items()):
            return manifest
    except FileNotFoundError:
        pass
    raise OSError(errno.ENOENT, f"what rank {rank} has written is not to be seen by rank 0")


def _write_text(path: Path, text: str) -> FileRecord:
    content = text.encode()
    with HashedWriter(path, CHUNK_BYTES, len(content)) as writer:
        writer.write(content)
        return writer.record()
