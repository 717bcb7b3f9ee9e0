"""One batch of token rows.

Shapes: B rows, L positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from runformer.data import IGNORED


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What a model reads and should predict.

    Attributes:
        inputs_BL: int64 token ids.
        labels_BL: int64; the token after each position, or -100 where the position does not count.
        keep_BL: bool; False where the input token is padding, which attention should not see as a key.
        needs_key_mask: whether plain causal attention would let a counted position see padding.
        documents_BL: int32; attention does not look from a position to one with another number. None: rows are whole.
        positions_BL: int64; each position's place in its document. None: 0, 1, 2, … in each row.
    """

    inputs_BL: Tensor
    labels_BL: Tensor
    keep_BL: Tensor
    needs_key_mask: bool
    documents_BL: Tensor | None = None
    positions_BL: Tensor | None = None

    @classmethod
    def of(
        cls,
        inputs_BL: Tensor,
        labels_BL: Tensor,
        keep_BL: Tensor,
        documents_BL: Tensor | None = None,
        positions_BL: Tensor | None = None,
    ) -> TokenBatch:
        """Make a batch, finding out whether it needs a key mask.

        Padding at the end of a row needs none: no real token comes after it, causal attention hides it from all
        before it, and what padding itself computes counts nowhere. Only a real token behind padding would see it.
        """
        needs_key_mask = not keep_BL.all() and bool((~keep_BL[:, :-1] & keep_BL[:, 1:]).any())
        return cls(inputs_BL, labels_BL, keep_BL, needs_key_mask, documents_BL, positions_BL)

    def __len__(self) -> int:
        """The number of rows."""
        return self.inputs_BL.shape[0]

    def _map(self, change: Callable[[Tensor], Tensor]) -> TokenBatch:
        """The same with every tensor changed."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(item) for name, item in values.items() if torch.is_tensor(item)}
        return replace(self, **changed)

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on another device; a pinned one is on its way when this returns."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> TokenBatch:
        """The same batch in memory that an accelerator copies from by itself."""
        return self._map(lambda tensor: tensor.pin_memory())

    def without_labels(self) -> TokenBatch:
        """The same rows with no position that counts."""
        return replace(self, labels_BL=torch.full_like(self.labels_BL, IGNORED))

    def padded(self, rows: int) -> TokenBatch:
        """A batch of ``rows`` rows, of which the last ones, where some are lacking, count nowhere."""
        lacking = max(0, rows - len(self))
        if lacking == 0:
            return self
        padded = self._map(lambda tensor: torch.cat([tensor, tensor[:1].expand(lacking, -1)]))
        padded.labels_BL[len(self) :] = IGNORED
        return padded

    def split(self, rows: int) -> list[TokenBatch]:
        """Cut into batches of ``rows`` rows, the last one perhaps shorter."""
        parts = []
        for begin in range(0, len(self), rows):
            tensors = (self.inputs_BL, self.labels_BL, self.keep_BL, self.documents_BL, self.positions_BL)
            cut = [None if tensor is None else tensor[begin : begin + rows] for tensor in tensors]
            parts.append(TokenBatch.of(*cut))  # type: ignore[arg-type]
        return parts
