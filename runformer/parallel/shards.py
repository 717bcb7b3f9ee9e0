"""Tensors of which every process of a group answers for an equal share (ZeRO stage 1, arXiv:1910.02054)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from runformer.parallel.collectives import gather
from runformer.parallel.group import Group

BUCKET_ELEMENTS = 2**24


class Shards:
    """How tensors, flattened, are shared out: consecutive elements, as many for each process, and fewer for the last.

    Args:
        group: the processes; one alone has everything.
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    def own(self, tensor: Tensor) -> Tensor:
        """This process's share, as a flat view; everything, in its shape, where there is one process."""
        if self._group.size == 1:
            return tensor
        size = self._size(tensor)
        return tensor.view(-1)[self._group.rank * size :][:size]

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Let every process have all shares of tensors, each of which is right in its owner's share; in place."""
        if self._group.size > 1:
            for bucket in buckets(tensors):
                self._spread(bucket)

    def span(self, tensor: Tensor) -> tuple[int, int] | None:
        """Which of the elements this process's share are; None: it has the tensor as it is."""
        if self._group.size == 1:
            return None
        size = self._size(tensor)
        return min(tensor.numel(), self._group.rank * size), min(tensor.numel(), (self._group.rank + 1) * size)

    def _size(self, tensor: Tensor) -> int:
        return -(-tensor.numel() // self._group.size)

    def _spread(self, tensors: Sequence[Tensor]) -> None:
        sizes = [self._size(tensor) for tensor in tensors]
        padded = [F.pad(share, (0, size - len(share))) for share, size in self._shares(tensors, sizes)]
        ranks = gather(torch.cat(padded), self._group, 0).view(self._group.size, -1)
        for tensor, columns in zip(tensors, ranks.split(sizes, 1), strict=True):
            tensor.view(-1).copy_(columns.reshape(-1)[: tensor.numel()])

    def _shares(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> Iterator[tuple[Tensor, int]]:
        return ((self.own(tensor), size) for tensor, size in zip(tensors, sizes, strict=True))


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Cut tensors into lists of one dtype that make messages of a good size."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(item.numel() for item in bucket) >= BUCKET_ELEMENTS
        if bucket and (full or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
