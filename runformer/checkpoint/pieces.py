"""What of a state one process writes: whole tensors, or boxes of them, each element of a tensor on one process only."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from runformer.models.part import Box, Part, Span, flat_boxes
from runformer.parallel.group import Group
from runformer.parallel.model import ParallelModel


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of the tensor ``name``, which has the shape ``shape``; ``tensor`` holds its elements."""

    name: str
    shape: tuple[int, ...]
    box: Box
    tensor: Tensor

    @property
    def key(self) -> str:
        """Its name in a file of tensors: the tensor's own, and of a box of it also where that begins."""
        return self.name if self.box.shape == self.shape else f"{self.name}@{','.join(map(str, self.box.offset))}"


def whole_pieces(tensors: Mapping[str, Tensor]) -> list[Piece]:
    """Tensors that a process has all of."""
    return [Piece(name, tuple(t.shape), Box.of(tuple(t.shape)), t) for name, t in tensors.items()]


def parameter_pieces(model: ParallelModel) -> list[Piece]:
    """What this process writes of a model's parameters."""
    held = model.held()
    found = {name: _owned(name, tensor, model.parts[name], None) for name, tensor in held.items()}
    return _duties(found, model.mesh.twins if model.mesh.options.zero >= 2 else model.mesh.replicas)


def state_pieces(model: ParallelModel, state: Mapping[str, Tensor], span: Callable[[str], Span | None]) -> list[Piece]:
    """What this process writes of tensors that go with a model's parameters.

    Args:
        model: the model.
        state: by ``<key>.<parameter's name>``: shaped as what is held of the parameter, or a span of that, flattened;
            what has another shape is the same on all processes.
        span: of each, which one that is; None: all.
    """
    found: dict[str, list[Piece]] = {}
    for key, tensor in state.items():
        part = model.parts[key.partition(".")[2]]
        fits = span(key) is not None or tuple(tensor.shape) == part.held_shape
        found[key] = _owned(key, tensor, part, span(key)) if fits else whole_pieces({key: tensor})
    return _duties(found, model.mesh.replicas if model.mesh.shards.size == 1 else model.mesh.twins)


def gathered(
    pieces: Iterable[Piece], outlines: Mapping[str, tuple[tuple[int, ...], torch.dtype]], world: Group
) -> list[Piece]:
    """Whole tensors on rank 0, out of the pieces that all processes have; elsewhere nothing. All processes take part.

    Args:
        pieces: this process's.
        outlines: shape and type of every tensor, in one order on all processes.
        world: all processes.
    """
    own: dict[str, list[Piece]] = {}
    for piece in pieces:
        own.setdefault(piece.name, []).append(piece)
    whole: dict[str, Tensor] = {}
    for name, (shape, dtype) in outlines.items():
        tensor = torch.zeros(shape, dtype=dtype, device=world.device)
        for piece in own.get(name, ()):
            tensor[piece.box.place].copy_(piece.tensor)
        if world.size > 1:
            dist.reduce(
                tensor.view(-1).view(torch.uint8), dst=0
            )  # as bytes: a sum of numbers would lose the sign of -0
        if world.is_first:
            whole[name] = tensor
    return whole_pieces(whole)


def _owned(name: str, tensor: Tensor, part: Part, span: Span | None) -> list[Piece]:
    if span is None:
        return [Piece(name, part.shape, box, piece) for box, piece in part.pieces(tensor)]
    found: list[Piece] = []
    begin = 0
    for box in flat_boxes(part.held_shape, *span):
        share = tensor[begin : begin + box.numel].view(box.shape)
        found += [Piece(name, part.shape, place, piece) for place, piece in part.pieces(share, box)]
        begin += box.numel
    return found


def _duties(found: Mapping[str, Sequence[Piece]], twins: Group) -> list[Piece]:
    """Of pieces that all twins have, those that this one writes: about as many bytes each, no tensor twice."""
    loads = [(0, rank) for rank in range(twins.size)]
    own: set[str] = set()
    for key in sorted(found, key=lambda key: -sum(piece.tensor.nbytes for piece in found[key])):
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + sum(piece.tensor.nbytes for piece in found[key]), rank))
        if rank == twins.rank:
            own.add(key)
    return [piece for key, pieces in found.items() if key in own for piece in pieces]
