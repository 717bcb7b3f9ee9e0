"""Files as MindSpore writes them: ``.ckpt`` and strategies, byte by byte."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from runformer.checkpoint.foreign.mindspore_strategy import SliceLayout

TYPES = {torch.float32: "Float32", torch.bfloat16: "BFloat16", torch.int32: "Int32", torch.float16: "Float16"}


def varint(number: int) -> bytes:
    number &= 2**64 - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def ckpt(tensors: Mapping[str, Tensor], *, crc: bool = False, slice_bytes: int = 1 << 29) -> bytes:
    """A ``.ckpt`` file; tensors above ``slice_bytes`` come in parts."""
    out = b""
    for name, tensor in tensors.items():
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        dims = b"".join(field(1, size) for size in tensor.shape)
        for begin in range(0, max(1, len(content)), slice_bytes):
            part = dims + field(2, TYPES[tensor.dtype].encode()) + field(3, content[begin : begin + slice_bytes])
            out += field(1, field(1, name.encode()) + field(2, part))
    return out + (b"crc_num" + zlib.crc32(out).to_bytes(10, "big") if crc else b"")


def strategy(layouts: Mapping[str, SliceLayout]) -> bytes:
    """A strategy file."""
    out = field(1, 0)
    for name, layout in layouts.items():
        dims = b"".join(field(1, size) for size in layout.device_matrix)
        axes = b"".join(field(1, axis) for axis in layout.tensor_map)
        content = field(1, dims) + field(2, axes) + field(6, layout.shard_step) + field(7, layout.shard_size)
        out += field(3, field(1, name.encode()) + field(2, content))
    return out
