"""The work folder: encoded samples in numbered chunks, so that a killed run goes on behind its last whole one.

A chunk is ``chunk-N.bin`` (its arrays, see ``encode.Samples``) and ``chunk-N.json`` (its counts, its bad records, and
where in the input it ends). Both are written under another name and renamed, the JSON last: it commits the chunk.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from runformer.data.prepare.blocks import Position
from runformer.data.prepare.encode import Counts, Samples
from runformer.data.prepare.records import BadRecord
from runformer.data.writing import explaining_writes
from runformer.errors import DataError

_MANIFEST = "manifest.json"
_DONE = "done.json"
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A committed chunk. ``end`` is where the next one begins, ``consumed`` the bytes of input files before it."""

    number: int
    tokens: int
    samples: int
    counts: Counts
    bad: tuple[BadRecord, ...]
    end: Position
    consumed: int


class WorkFolder:
    """The state of a run on disk, held by one process at a time; made by ``opened``.

    Attributes:
        path: the folder.
        chunks: those that are whole, in order.
        outdated: what an earlier run left was made from other inputs or options, and is gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.chunks: list[Chunk] = []
        self.outdated = False
        self._lock: IO[bytes] | None = None

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[WorkFolder]:
        """The folder beside an output, made where it is not there. It goes where nothing worth keeping is in it.

        Raises:
            DataError: another process uses it, or it cannot be written.
        """
        folder = cls(path)
        with explaining_writes(path):
            folder._acquire()
        try:
            yield folder
        finally:
            if not folder.chunks and not folder.outcome():
                shutil.rmtree(path, ignore_errors=True)
            folder._release()

    def _acquire(self) -> None:
        self.path.mkdir(exist_ok=True)
        self._lock = (self.path / _LOCK).open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._release()
            message = f"{self.path} is in use: another process is writing the same output"
            raise DataError(message, hint="wait for it, or name another --output") from error

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def resume(self, manifest: dict[str, Any]) -> None:
        """Find the chunks of an earlier run, if it was about the same; else forget them.

        Raises:
            DataError: the folder cannot be read or written.
        """
        manifest = json.loads(json.dumps(manifest))
        with explaining_writes(self.path):
            earlier = _read_json(self.path / _MANIFEST)
            if earlier != manifest:
                self.outdated = earlier is not None
                self._forget(0)
                write_file(self.path / _MANIFEST, json.dumps(manifest, indent=1).encode())
            while (chunk := self._committed(len(self.chunks))) is not None:
                self.chunks.append(chunk)
            self._forget(len(self.chunks))

    def _forget(self, first: int) -> None:
        """Remove chunks from ``first`` on, and what was under way."""
        for file in self.path.iterdir():
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name.startswith("chunk-") and (
                not file.stem[6:].isdecimal() or file.suffix not in (".bin", ".json") or int(file.stem[6:]) >= first
            ):
                file.unlink()

    def _committed(self, number: int) -> Chunk | None:
        content = _read_json(self._file(number, "json"))
        try:
            if content is None:
                return None
            chunk = Chunk(
                number,
                content["tokens"],
                content["samples"],
                Counts(**content["counts"]),
                tuple(BadRecord(**each) for each in content["bad"]),
                Position(**content["end"]),
                content["consumed"],
            )
            whole = self._file(number, "bin").stat().st_size == chunk.tokens * 5 + chunk.samples * 4
        except (KeyError, TypeError, FileNotFoundError):
            return None
        return chunk if whole else None

    def _file(self, number: int, suffix: str) -> Path:
        return self.path / f"chunk-{number:06}.{suffix}"

    def add(
        self, parts: Sequence[Samples], counts: Counts, bad: Sequence[BadRecord], end: Position, consumed: int
    ) -> None:
        """Commit the next chunk.

        Raises:
            DataError: it cannot be written.
        """
        samples = Samples.joined(parts)
        number = len(self.chunks)
        chunk = Chunk(number, len(samples.tokens), len(samples.lengths), counts, tuple(bad), end, consumed)
        content = asdict(chunk)
        with explaining_writes(self.path):
            data = (samples.tokens.data, samples.lengths.data, samples.learnt.data)
            write_file(self._file(number, "bin"), *data)
            write_file(self._file(number, "json"), json.dumps(content).encode())
        self.chunks.append(chunk)

    def read(self, chunk: Chunk) -> Samples:
        """The samples of a chunk.

        Raises:
            DataError: it cannot be read.
        """
        with explaining_writes(self.path):
            data = self._file(chunk.number, "bin").read_bytes()
        sizes = chunk.tokens * 4, chunk.samples * 4
        return Samples(
            np.frombuffer(data, np.int32, chunk.tokens),
            np.frombuffer(data, np.uint8, chunk.tokens, offset=sum(sizes)),
            np.frombuffer(data, np.int32, chunk.samples, offset=sizes[0]),
        )

    @property
    def out(self) -> Path:
        """Where the output is made before it goes to its place; empty."""
        folder = self.path / "out"
        with explaining_writes(self.path):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        return folder

    def decide(self, outcome: dict[str, Any]) -> None:
        """From here on the output is whole, and ``outcome`` is what there is to say: only ``finish`` is left to do.

        Raises:
            DataError: the decision cannot be written.
        """
        with explaining_writes(self.path):
            for file in (self.path / "out").iterdir():
                sync(file)
            sync(self.path / "out")
            write_file(self.path / _DONE, json.dumps(outcome).encode())

    def outcome(self) -> dict[str, Any] | None:
        """What was decided."""
        return _read_json(self.path / _DONE)

    def reconsider(self) -> None:
        """Take the decision back.

        Raises:
            DataError: the folder cannot be written.
        """
        with explaining_writes(self.path):
            (self.path / _DONE).unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Move the files that were made beside ``target``, the data before its index, and remove the folder.

        Raises:
            DataError: a file cannot be moved.
        """
        with explaining_writes(target):
            folder = self.path / "out"
            files = sorted(folder.iterdir(), key=lambda file: (file.suffix in (".db", ".idx"), file.name))
            for file in files:
                file.replace(target.parent / file.name)
            sync(target.parent)
            self.chunks.clear()
            shutil.rmtree(self.path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_file(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that it is there whole or not at all, whenever the machine stops.

    Raises:
        OSError: it cannot be written.
    """
    beside = path.with_name(f"{path.name}.tmp")
    with beside.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
