"""``metadata.json``: which tensors a checkpoint holds, where their bytes lie, and the hash of every chunk.

Written in one canonical form with a checksum of itself, so that a change of any byte of it shows::

    {"checksum": "<xxh3-128 of all the rest>",
     "chunk_bytes": 16777216,
     "files": {"<name>": {"chunks": ["<xxh3-128>", …], "size": <bytes>}, …},
     "format": "runformer", "format_version": 1,
     "tensors": {"<name>": {"dtype": "F32", "shape": […], "slices": [
         {"bytes": [<begin>, <end>], "file": "<name>", "offset": [0, …], "shape": […]}]}, …}}

A slice is a box of its tensor: where it begins in each dimension, and how long it is there. One process
writes each tensor as one slice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from runformer.errors import CheckpointError

FORMAT_VERSION = 1
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of one element by safetensors' name of its type."""

_MAX_CHUNK_BYTES = 1 << 30
_HASH = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file: its length in bytes, and the xxh3-128 (hexadecimal) of each chunk."""

    size: int
    chunks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor: bytes ``begin`` to ``end`` of ``file``. ``dtype`` is safetensors' name (``F32``, ``BF16``)."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


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
    def from_json(text: str, where: str) -> Manifest:
        """Read ``metadata.json``; ``where`` names it in errors.

        Every number is checked against the others before anything is allocated or opened by it.

        Raises:
            CheckpointError: it is damaged, of another version, or names a file outside its directory.
        """
        content = _parse(text, where)
        try:
            return _from_content(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{where}: not a valid manifest: {error}", hint=_DAMAGED) from None


def is_plain_name(name: str) -> bool:
    """Whether a file of this name lies in the directory itself, neither below nor above it."""
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


_DAMAGED = "resume from an older checkpoint, or copy this one again"


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: damaged: not JSON: {error}", hint=_DAMAGED) from None
    if not isinstance(content, dict) or content.get("format") != "runformer":
        raise CheckpointError(f"{where}: not the manifest of a Runformer checkpoint", hint=_DAMAGED)
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{where}: format version {content.get('format_version')}, only {FORMAT_VERSION} can be read",
            hint="load it with the version of Runformer that wrote it",
        )
    rest = {key: value for key, value in content.items() if key != "checksum"}
    if content.get("checksum") != _checksum(rest) or _canonical(content) != text:
        raise CheckpointError(f"{where}: damaged: its checksum does not fit its content", hint=_DAMAGED)
    return content


def _from_content(content: dict[str, Any]) -> Manifest:
    chunk_bytes = _count(content["chunk_bytes"])
    _require(1 <= chunk_bytes <= _MAX_CHUNK_BYTES, f"chunks of {chunk_bytes} bytes")
    files = {name: _file(name, record, chunk_bytes) for name, record in content["files"].items()}
    tensors = {name: _tensor(name, record, files) for name, record in content["tensors"].items()}
    return Manifest(chunk_bytes, files, tensors)


def _file(name: str, record: dict[str, Any], chunk_bytes: int) -> FileRecord:
    _require(is_plain_name(name), f"the file name {name!r} is not a plain one")
    size, chunks = _count(record["size"]), tuple(record["chunks"])
    _require(len(chunks) == -(-size // chunk_bytes), f"{name}: {len(chunks)} hashes for {size} bytes")
    _require(all(_HASH.fullmatch(chunk) for chunk in chunks), f"{name}: a hash is not 32 hexadecimal digits")
    return FileRecord(size, chunks)


def _tensor(name: str, record: dict[str, Any], files: dict[str, FileRecord]) -> TensorRecord:
    _require(len(record["slices"]) == 1, f"{name} is cut into {len(record['slices'])} slices")
    (part,) = record["slices"]
    shape = tuple(_count(size) for size in record["shape"])
    begin, end = (_count(position) for position in part["bytes"])
    _require(part["shape"] == record["shape"] and part["offset"] == [0] * len(shape), f"{name}: its slice is not whole")
    _require(part["file"] in files, f"{name} lies in {part['file']!r}, which is not listed")
    _require(begin <= end <= files[part["file"]].size, f"{name}: bytes {begin} to {end} are not in {part['file']}")
    _require(end - begin == math.prod(shape) * ITEM_BYTES[record["dtype"]], f"{name}: {end - begin} bytes for {shape}")
    return TensorRecord(part["file"], record["dtype"], shape, begin, end)


def _tensor_json(tensor: TensorRecord) -> dict[str, Any]:
    part = {
        "bytes": [tensor.begin, tensor.end],
        "file": tensor.file,
        "offset": [0] * len(tensor.shape),
        "shape": tensor.shape,
    }
    return {"dtype": tensor.dtype, "shape": tensor.shape, "slices": [part]}


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
