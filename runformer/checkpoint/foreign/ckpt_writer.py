"""Writing MindSpore's ``.ckpt`` files; ``ckpt_file.py`` says what they are."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from runformer.checkpoint.foreign.ckpt_file import TYPES_THERE
from runformer.checkpoint.tensors import TYPE_NAMES

SLICE_BYTES = 512 << 20
"""A larger tensor comes in parts, as MindSpore writes it."""

_NAMES = {ours: theirs for theirs, ours in TYPES_THERE.items()}


def write_ckpt(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write a new file, which is on the disk when this returns; one tensor at a time is in memory.

    Raises:
        OSError: the disk is full, or the file is there.
    """
    with path.open("xb") as file:
        for name, tensor in tensors:
            _write(file, name, tensor)
        file.flush()
        os.fsync(file.fileno())


def _write(file: BinaryIO, name: str, tensor: Tensor) -> None:
    content = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
    dims = b"".join(_number(1, size) for size in tensor.shape)
    head = dims + _text(2, _NAMES[TYPE_NAMES[tensor.dtype]])
    for begin in range(0, max(1, len(content)), SLICE_BYTES):
        part = content[begin : begin + SLICE_BYTES]
        before = head + _key(3) + _varint(len(part))
        value = _text(1, name) + _key(2) + _varint(len(before) + len(part)) + before
        file.write(_key(1) + _varint(len(value) + len(part)) + value)
        file.write(part)


def _key(number: int) -> bytes:
    """Of a field with bytes."""
    return _varint(number << 3 | 2)


def _text(number: int, text: str) -> bytes:
    content = text.encode()
    return _key(number) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
