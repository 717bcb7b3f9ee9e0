"""How work is laid over devices, in the terms of those who lay it: part of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Layers = bool | tuple[int, ...]
"""All layers or none, or so many of each stage, from its first on."""


@dataclass(frozen=True, slots=True)
class ParallelOptions:
    """How work is laid over devices: sizes of the four dimensions, whose product is the number of devices.

    ``data`` copies of the model, each with its own rows; each copy's layers cut into ``pipeline`` stages, each layer
    shared by ``tensor`` devices, each sequence by ``context``. ``sequence_parallel`` splits activations between
    layers over the tensor dimension, too; with ``copies_embedding`` an embedding that is no output layer is not split
    over it.

    ``zero`` is how much of what copies of the model have in common each of them has a share of only (ZeRO,
    arXiv:1910.02054): 0 nothing, 1 the optimizer's states, 2 gradients and, between steps, weights, too, 3 weights at
    all times; ``sharers`` copies share, or all of them.

    A device of a pipeline has ``chunks`` stages, and micro-batches pass through them as PyTorch's ``schedule`` of that
    name has it; ``extra_layers`` are those of each stage, in the order of the layers, beyond an equal number.

    ``recompute`` says which layers keep only their input for the backward pass: none, all, or so many of each stage,
    from its first on. Of ``products`` (MLP's gate · up) and ``norms`` (what attention and MLP are given) it says in the
    same way which layers do not keep them.

    Plain copies send their gradients in ``gradient_groups`` messages; None: of PyTorch's size. In
    ``reduce_dtype`` they are sent and summed; None: in their own.
    """

    data: int = 1
    tensor: int = 1
    context: int = 1
    pipeline: int = 1
    sequence_parallel: bool = False
    copies_embedding: bool = False
    zero: Literal[0, 1, 2, 3] = 0
    sharers: int | None = None
    chunks: int = 1
    schedule: str = "1F1B"
    extra_layers: tuple[int, ...] | None = None
    gradient_groups: int | None = None
    reduce_dtype: Literal["bfloat16"] | None = None
    recompute: Layers = False
    recompute_products: Layers = False
    recompute_norms: Layers = False

    @property
    def devices(self) -> int:
        """How many devices the layout takes."""
        return self.data * self.tensor * self.context * self.pipeline

    @property
    def replicas(self) -> int:
        """How many devices have the same part of the model: copies, and holders of parts of the same sequences."""
        return self.data * self.context

    @property
    def shards(self) -> int:
        """How many of those share out what ``zero`` says."""
        return (self.sharers or self.replicas) if self.zero else 1


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """A layout is to be found for so many devices; ``memory`` of each in bytes, None: what the device has."""

    devices: int
    memory: int | None = None
