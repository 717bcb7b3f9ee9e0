"""Collectives inside a model, with their gradients.

Within a block whose weights are cut over processes each of them computes with its own part, on the same input; what
they give is summed. Outside, activations are the same on all of them, or, with sequence parallelism, each holds some
of the positions (arXiv:2205.05198, figures 4 and 5: f and f-bar, g and g-bar).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from runformer.parallel.group import Group

_POSITIONS = 1  # the dimension of x_BLD


def gather(x: Tensor, group: Group, dim: int) -> Tensor:
    """All ranks' tensors of one shape, one after the other along ``dim``."""
    parts = [torch.empty_like(x) for _ in range(group.size)]
    dist.all_gather(parts, x.contiguous(), group=group.handle)
    return torch.cat(parts, dim)


def scatter_sum(x: Tensor, group: Group, dim: int) -> Tensor:
    """This rank's part, along ``dim``, of the sum over all ranks."""
    if x.device.type == "cpu":  # gloo sums and scatters in two steps anyway
        whole = group.sum(x.clone(memory_format=torch.contiguous_format))
        return whole.chunk(group.size, dim)[group.rank].clone(memory_format=torch.contiguous_format)
    parts = [part.contiguous() for part in x.chunk(group.size, dim)]
    summed = torch.empty_like(parts[0])
    dist.reduce_scatter(summed, parts, group=group.handle)
    return summed


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, spread: bool) -> Tensor:
        ctx.group, ctx.spread = group, spread
        return gather(x, group, _POSITIONS) if spread else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.spread:
            return scatter_sum(gradient, ctx.group, _POSITIONS), None, None
        return ctx.group.sum(gradient.clone(memory_format=torch.contiguous_format)), None, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, spread: bool) -> Tensor:
        ctx.group, ctx.spread = group, spread
        if spread:
            return scatter_sum(x, group, _POSITIONS)
        return group.sum(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gather(gradient, ctx.group, _POSITIONS) if ctx.spread else gradient, None, None


class _GatherPositions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return gather(x, group, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return scatter_sum(gradient, ctx.group, ctx.dim), None, None


def enter(x_BLD: Tensor, group: Group, *, spread: bool) -> Tensor:
    """Activations on their way into a block whose weights are cut over the group; their gradients are summed.

    Args:
        x_BLD: the same on all ranks; with ``spread`` each rank's share of the positions.
        group: the ranks that share the block.
        spread: whether positions are shared out between blocks.
    """
    entered: Tensor = _Enter.apply(x_BLD, group, spread)  # type: ignore[no-untyped-call]
    return entered


def leave(x_BLD: Tensor, group: Group, *, spread: bool) -> Tensor:
    """The sum over the group of what each rank's part of a block gives; with ``spread`` this rank's share of it."""
    left: Tensor = _Leave.apply(x_BLD, group, spread)  # type: ignore[no-untyped-call]
    return left


def gather_positions(x: Tensor, group: Group, dim: int) -> Tensor:
    """The positions of all ranks, in their order, along ``dim``; gradients go back to where they come from."""
    gathered: Tensor = _GatherPositions.apply(x, group, dim)  # type: ignore[no-untyped-call]
    return gathered
