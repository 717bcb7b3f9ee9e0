"""Where a process stands among those of a run, and with whom it computes what.

Ranks are counted as MindFormers counts them: those that share layers (tensor) are neighbours, then those that share
sequences (context), then copies of the model (data), and the stages of the pipeline are farthest apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.distributed as dist

from runformer.config.layout import ParallelOptions
from runformer.parallel.group import Group, alone

V_SCHEDULES = frozenset({"ZBVZeroBubble"})
"""Schedules in which the first process has the last stage, too."""
_DIMENSIONS = ("pipeline", "data", "context", "tensor")


@dataclass(frozen=True, slots=True)
class Place:
    """The coordinates of a process, each from 0."""

    pipeline: int = 0
    data: int = 0
    context: int = 0
    tensor: int = 0


def place_of(rank: int, options: ParallelOptions) -> Place:
    """Where a rank stands in a layout."""
    rest, tensor = divmod(rank, options.tensor)
    rest, context = divmod(rest, options.context)
    pipeline, data = divmod(rest, options.data)
    return Place(pipeline, data, context, tensor)


def shard_of(place: Place, options: ParallelOptions) -> int:
    """Which share of what copies share out is had there."""
    return (place.data * options.context + place.context) % options.shards


@dataclass(frozen=True, slots=True)
class Mesh:
    """A process's place in a layout, and its groups there.

    Attributes:
        options: the layout.
        place: where this process stands.
        world: all processes.
        tensor: those that share its layers.
        context: those that share its sequences.
        pipeline: those with its rows, in the order of their stages.
        replicas: those with the same part of the model: copies, and holders of other parts of the same sequences.
        shards: those of them that share out what ``options.zero`` says; this one alone where nothing is shared.
        twins: those of them that have the same share; this one alone where all of them share.
        model: those that make up one copy of the model.
        ends: those with the first and the last stage of one copy, of which this process is one; else it alone.
    """

    options: ParallelOptions
    place: Place
    world: Group
    tensor: Group
    context: Group
    pipeline: Group
    replicas: Group
    shards: Group
    twins: Group
    model: Group
    ends: Group


def lay_out(options: ParallelOptions, world: Group) -> Mesh:
    """Make the groups of a layout; all processes do it together.

    Args:
        options: sizes, whose product is the number of processes.
        world: all of them.
    """
    assert options.devices == world.size, f"a layout for {options.devices} processes, not {world.size}"
    makers = {
        "tensor": ("tensor",),
        "context": ("context",),
        "pipeline": ("pipeline",),
        "replicas": ("data", "context"),
        "model": ("pipeline", "tensor"),
    }
    groups = {name: _group(along, options, world) for name, along in makers.items()}
    shards, twins = _sharers(options, world, groups["replicas"])
    place = place_of(world.rank, options)
    return Mesh(options, place, world, **groups, shards=shards, twins=twins, ends=_ends(options, world))


def _group(along: tuple[str, ...], options: ParallelOptions, world: Group) -> Group:
    """Processes that differ in nothing but the given coordinates, in the order of their ranks."""
    size = math.prod(getattr(options, name) for name in along)
    if size == 1:
        return alone(world.device)
    if size == world.size:
        return world
    return _new_group(_families(along, options), world)


def _families(along: tuple[str, ...], options: ParallelOptions) -> list[list[int]]:
    fixed = [name for name in _DIMENSIONS if name not in along]
    families: dict[tuple[int, ...], list[int]] = {}
    for rank in range(options.devices):
        place = place_of(rank, options)
        families.setdefault(tuple(getattr(place, name) for name in fixed), []).append(rank)
    return list(families.values())


def _sharers(options: ParallelOptions, world: Group, replicas: Group) -> tuple[Group, Group]:
    """Consecutive replicas share, and those with the same number among sharers are twins."""
    size = options.shards
    if size in (1, options.replicas):
        return (alone(world.device), replicas) if size == 1 else (replicas, alone(world.device))
    families = _families(("data", "context"), options)
    sharers = [ranks[begin : begin + size] for ranks in families for begin in range(0, len(ranks), size)]
    twins = [ranks[number::size] for ranks in families for number in range(size)]
    return _new_group(sharers, world), _new_group(twins, world)


def _ends(options: ParallelOptions, world: Group) -> Group:
    """The first and the last stage share the weights of a tied embedding."""
    if options.pipeline == 1 or options.schedule in V_SCHEDULES:
        return alone(world.device)
    families = [[ranks[0], ranks[-1]] for ranks in _families(("pipeline",), options)]
    return world if families == [list(range(world.size))] else _new_group(families, world)


def _new_group(families: list[list[int]], world: Group) -> Group:
    own = alone(world.device)
    for ranks in families:  # every process has to take part in making every group
        handle = dist.new_group(ranks)
        if world.rank in ranks:
            own = Group(ranks.index(world.rank), len(ranks), world.device, handle)
    return own
