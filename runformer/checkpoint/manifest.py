"""``metadata.json``: which tensors a checkpoint holds, where their bytes lie, and the hash of every chunk.

Written in one canonical form with a checksum of itself, so that a change of any byte of it shows::

    {"checksum": "<xxh3-128 of all the rest>",
     "chunk_bytes": 1048576,
     "files": {"<name>": {"chunks": ["<xxh3-128>", …], "size": <bytes>}, …},
     "format": "runformer", "format_version": 1,
     "tensors": {"<name>": {"dtype": "F32", "shape": […], "slices": [
         {"bytes": [<begin>, <end>], "file": "<name>", "offset": [0, …], "shape": […]}]}, …}}

A slice is a box of its tensor: where it begins in each dimension, and how long it is there. Each process writes
those that it answers for; together they are the tensor, each element once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from runformer.errors import CheckpointError, DamageError
from runformer.models.part import Box

FORMAT_VERSION = 1
ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1},
    **{f"{sign}{bits}": bits // 8 for sign in "IU" for bits in (8, 16, 32, 64)},
}
"""Bytes of one element by safetensors' name of its type."""

_MAX_CHUNK_BYTES = 1 << 30
_HASH = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file: its length in bytes, and the xxh3-128 (hexadecimal) of each chunk."""

    size: int
    chunks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SliceRecord:
    """A box of a tensor: bytes ``begin`` to ``end`` of ``file``, in C order."""

    file: str
    box: Box
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor and where its slices lie. ``dtype`` is safetensors' name (``F32``, ``BF16``)."""

    dtype: str
    shape: tuple[int, ...]
    slices: tuple[SliceRecord, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What ``metadata.json`` says; files by their names in the same directory, tensors by theirs."""

    chunk_bytes: int
    files: Mapping[str, FileRecord]
    tensors: Mapping[str, TensorRecord]

    def to_json(self) -> str:
        """The text of ``metadata.json``."""
        content = {
            "chunk_bytes": self.chunk_bytes,
            "files": {name: {"chunks": file.chunks, "size": file.size} for name, file in self.files.items()},
            "format": "runformer",
            "format_version": FORMAT_VERSION,
            "tensors": {name: _tensor_json(tensor) for name, tensor in self.tensors.items()},
        }
        return _canonical(content | {"checksum": _checksum(content)})

    @staticmethod
    def from_json(text: str, where: str, *, whole: bool = True) -> Manifest:
        """Read ``metadata.json``; ``where`` names it in errors.

        Every number is checked against the others before anything is allocated or opened by it. With ``whole`` slices
        must make up their tensors; the manifest of what one process wrote need not.

        Raises:
            DamageError: it is damaged, of another version, or names a file outside its directory.
        """
        content = _parse(text, where)
        try:
            return _from_content(content, whole)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamageError(f"{where}: not a valid manifest: {error}", hint=_DAMAGED) from None


def merged(manifests: Sequence[Manifest]) -> Manifest:
    """What several processes wrote, as one: all their files, and the slices of each tensor together.

    Raises:
        ValueError: two of them do not speak of the same tensor, or together they do not hold all of one.
    """
    files = {name: file for manifest in manifests for name, file in manifest.files.items()}
    tensors: dict[str, TensorRecord] = {}
    for name, tensor in (item for manifest in manifests for item in manifest.tensors.items()):
        before = tensors.setdefault(name, tensor)
        if before is not tensor:
            _require((before.dtype, before.shape) == (tensor.dtype, tensor.shape), f"{name}: of two shapes or types")
            tensors[name] = TensorRecord(tensor.dtype, tensor.shape, before.slices + tensor.slices)
    for name, tensor in tensors.items():
        _require_whole(name, tensor)
    return Manifest(manifests[0].chunk_bytes, files, tensors)


def is_plain_name(name: str) -> bool:
    """Whether a file of this name lies in the directory itself, neither below nor above it."""
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


_DAMAGED = "resume from an older checkpoint, or copy this one again"


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{where}: damaged: not JSON: {error}", hint=_DAMAGED) from None
    if not isinstance(content, dict) or content.get("format") != "runformer":
        raise DamageError(f"{where}: not the manifest of a Runformer checkpoint", hint=_DAMAGED)
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{where}: format version {content.get('format_version')}, only {FORMAT_VERSION} can be read",
            hint="load it with the version of Runformer that wrote it",
        )
    rest = {key: value for key, value in content.items() if key != "checksum"}
    if content.get("checksum") != _checksum(rest) or _canonical(content) != text:
        raise DamageError(f"{where}: damaged: its checksum does not fit its content", hint=_DAMAGED)
    return content


def _from_content(content: dict[str, Any], whole: bool) -> Manifest:
    chunk_bytes = _count(content["chunk_bytes"])
    _require(1 <= chunk_bytes <= _MAX_CHUNK_BYTES, f"chunks of {chunk_bytes} bytes")
    files = {name: _file(name, record, chunk_bytes) for name, record in content["files"].items()}
    tensors = {name: _tensor(name, record, files) for name, record in content["tensors"].items()}
    for name, tensor in tensors.items():
        if whole:
            _require_whole(name, tensor)
    return Manifest(chunk_bytes, files, tensors)


def _file(name: str, record: dict[str, Any], chunk_bytes: int) -> FileRecord:
    _require(is_plain_name(name), f"the file name {name!r} is not a plain one")
    size, chunks = _count(record["size"]), tuple(record["chunks"])
    _require(len(chunks) == -(-size // chunk_bytes), f"{name}: {len(chunks)} hashes for {size} bytes")
    _require(all(_HASH.fullmatch(chunk) for chunk in chunks), f"{name}: a hash is not 32 hexadecimal digits")
    return FileRecord(size, chunks)


def _tensor(name: str, record: dict[str, Any], files: dict[str, FileRecord]) -> TensorRecord:
    shape, dtype = _counts(record["shape"]), record["dtype"]
    slices = tuple(_slice(name, part, shape, ITEM_BYTES[dtype], files) for part in record["slices"])
    return TensorRecord(dtype, shape, slices)


def _slice(
    name: str, part: dict[str, Any], shape: tuple[int, ...], item_bytes: int, files: dict[str, FileRecord]
) -> SliceRecord:
    box, file = Box(_counts(part["offset"]), _counts(part["shape"])), part["file"]
    begin, end = _counts(part["bytes"])
    _require(len(box.offset) == len(box.shape) == len(shape), f"{name}: a slice has other dimensions")
    fits = all(low + size <= full for low, size, full in zip(box.offset, box.shape, shape, strict=True))
    _require(fits, f"{name}: a slice of {box.shape} at {box.offset} is not in {shape}")
    _require(file in files, f"{name} lies in {file!r}, which is not listed")
    _require(begin <= end <= files[file].size, f"{name}: bytes {begin} to {end} are not in {file}")
    _require(end - begin == box.numel * item_bytes, f"{name}: {end - begin} bytes for {box.shape}")
    return SliceRecord(file, box, begin, end)


def _require_whole(name: str, tensor: TensorRecord) -> None:
    held, size = sum(part.box.numel for part in tensor.slices), math.prod(tensor.shape)
    _require(held == size and bool(tensor.slices), f"{name}: its slices hold {held} of {size} elements")


def _tensor_json(tensor: TensorRecord) -> dict[str, Any]:
    slices = [
        {"bytes": [part.begin, part.end], "file": part.file, "offset": part.box.offset, "shape": part.box.shape}
        for part in tensor.slices
    ]
    return {"dtype": tensor.dtype, "shape": tensor.shape, "slices": slices}


def _counts(values: Sequence[object]) -> tuple[int, ...]:
    return tuple(_count(value) for value in values)


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _canonical(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True) + "\n"


def _checksum(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
