"""The key-value cache: memory for all positions of a batch, allocated once.

Shape suffixes: B batch, G key-value heads, L new positions, S cache slots, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runformer.models.decoder import CausalLM


class StaticLayerCache:
    """Keys and values of one layer. ``slots_L`` and ``window`` are set by the cache that it belongs to."""

    def __init__(self, keys_BGSK: Tensor, values_BGSK: Tensor) -> None:
        self.keys_BGSK = keys_BGSK
        self.values_BGSK = values_BGSK
        self.slots_L = torch.empty(0, dtype=torch.int64)
        self.window = 0

    def update(self, keys_BGLK: Tensor, values_BGLK: Tensor) -> tuple[Tensor, Tensor]:
        """Write new positions into their slots; give the window of slots that attention reads, ``(B, G, S, K)``."""
        self.keys_BGSK.index_copy_(2, self.slots_L, keys_BGLK)
        self.values_BGSK.index_copy_(2, self.slots_L, values_BGLK)
        return self.keys_BGSK[:, :, : self.window], self.values_BGSK[:, :, : self.window]


class StaticCache:
    """Keys and values of the layers here for ``capacity`` positions of every row.

    Memory: ``2 · layers · batch · kv_heads · capacity · head_dim`` elements of ``dtype``.
    """

    def __init__(self, model: CausalLM, batch: int, capacity: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.batch, self.capacity = batch, capacity
        shape = (batch, model.num_kv_heads, capacity, model.options.head_dim)

        def zeros() -> Tensor:
            # Not empty memory: a masked slot has weight 0, and 0 · NaN would be NaN.
            return torch.zeros(shape, dtype=dtype, device=device)

        self.layers = [StaticLayerCache(zeros(), zeros()) for _ in model.layers]

    def point(self, slots_L: Tensor, window: int) -> None:
        """Say where the next positions are written, and how many slots from the first attention reads."""
        for layer in self.layers:
            layer.slots_L = slots_L
            layer.window = window


def round_up(length: int) -> int:
    """The next power of two, or one and a half times one: few sizes, so few compiled shapes, and little waste."""
    power = 1 << (length - 1).bit_length()
    return power * 3 // 4 if length <= power * 3 // 4 else power
