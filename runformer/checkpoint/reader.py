"""Reading our checkpoints: no byte reaches the model that is not the byte which was written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from runformer.checkpoint.layout import COMMON, MANIFEST, complete_checkpoints
from runformer.checkpoint.manifest import Manifest
from runformer.checkpoint.tensor_file import NamedTensors, TensorFile, some
from runformer.errors import CheckpointError

_HINT = "resume from an older checkpoint, or copy this one again"


class Checkpoint(NamedTensors):
    """One checkpoint: a mapping of names to tensors, each read when asked for.

    A file's hashes are compared before the first tensor is taken from it. Parameters have their own names,
    Adam's moments have them after ``exp_avg.`` and ``exp_avg_sq.``.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        super().__init__(manifest.tensors)
        self.path = path
        self._manifest = manifest
        self._files: dict[str, TensorFile] = {}
        self._verified: set[str] = set()

    @property
    def common(self) -> dict[str, Any]:
        """``common.json``: step, position in the data and the like."""
        self._verify_file(COMMON)
        common: dict[str, Any] = json.loads((self.path / COMMON).read_bytes())
        return common

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor; reads nothing."""
        return self._manifest.tensors[name].shape

    def origin(self, name: str) -> str:
        """The file that holds a tensor."""
        return str(self.path / self._manifest.tensors[name].file)

    def __getitem__(self, name: str) -> Tensor:
        """One tensor, on the CPU.

        Raises:
            KeyError: there is none of that name.
            CheckpointError: its file is damaged.
        """
        file = self._manifest.tensors[name].file
        if file not in self._files:
            self._verify_file(file)
            self._files[file] = TensorFile(self.path / file)
        return self._files[file].tensor(name)

    def verify(self) -> None:
        """Compare the hash of every chunk of every file.

        Raises:
            CheckpointError: one differs, or a file is missing, cut short or too long; names file, chunk and tensor.
        """
        for name in self._manifest.files:
            self._verify_file(name)

    def _verify_file(self, name: str) -> None:
        if name in self._verified:
            return
        path, record = self.path / name, self._manifest.files[name]
        try:
            size = path.stat().st_size
            if size != record.size:
                held = self._held(name, min(size, record.size), record.size)
                raise CheckpointError(f"{path}: {size} bytes long, but {record.size} were written{held}", hint=_HINT)
            with path.open("rb") as file:
                self._compare_chunks(name, iter(lambda: file.read(self._manifest.chunk_bytes), b""))
        except OSError as error:
            held = self._held(name, 0, record.size)
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}{held}", hint=_HINT) from None
        self._verified.add(name)

    def _compare_chunks(self, name: str, chunks: Iterator[bytes]) -> None:
        for number, expected in enumerate(self._manifest.files[name].chunks):
            if xxhash.xxh3_128_hexdigest(next(chunks, b"")) != expected:
                begin = number * self._manifest.chunk_bytes
                held = self._held(name, begin, begin + self._manifest.chunk_bytes)
                raise CheckpointError(f"{self.path / name}: damaged in chunk {number}{held}", hint=_HINT)

    def _held(self, file: str, begin: int, end: int) -> str:
        """What bytes ``begin`` to ``end`` hold, to end a sentence with."""
        touched = [
            name
            for name, tensor in self._manifest.tensors.items()
            if tensor.file == file and tensor.begin < end and begin < tensor.end
        ]
        return f", where {some(touched)} should be" if touched else ""


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint directory ``path``; reads only its manifest.

    Raises:
        CheckpointError: there is none, or its manifest is damaged.
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
        raise CheckpointError(f"{where}: damaged: {error}", hint=_HINT) from None
    return Checkpoint(path, Manifest.from_json(text, str(where)))


def newest_intact(root: Path, *, verify: bool = True) -> tuple[Checkpoint, tuple[str, ...]]:
    """The newest checkpoint in ``root`` whose every byte is as written, and what was wrong with newer ones.

    Args:
        root: the folder that holds them.
        verify: False looks at manifests alone, which takes no time, and says nothing of the tensors.

    Raises:
        CheckpointError: there is none, or all are damaged.
    """
    problems: list[str] = []
    for path in reversed(complete_checkpoints(root).values()):
        try:
            checkpoint = open_checkpoint(path)
            if verify:
                checkpoint.verify()
        except CheckpointError as error:
            problems.append(error.message)
        else:
            return checkpoint, tuple(problems)
    if problems:
        raise CheckpointError("\n".join([f"{root}: no checkpoint is intact:", *problems]))
    raise CheckpointError(f"{root}: there is no checkpoint here", hint="check --load_checkpoint or --output_dir")
