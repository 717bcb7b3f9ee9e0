"""One batch of token rows.

Shapes: B rows, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    """

    inputs_BL: Tensor
    labels_BL: Tensor
    keep_BL: Tensor
    needs_key_mask: bool

    @classmethod
    def of(cls, inputs_BL: Tensor, labels_BL: Tensor, keep_BL: Tensor) -> TokenBatch:
        """Make a batch, finding out whether it needs a key mask.

        Padding at the end of a row needs none: no real token comes after it, causal attention hides it from all
        before it, and what padding itself computes counts nowhere. Only a real token behind padding would see it.
        """
        real_after_padding = ~keep_BL[:, :-1] & keep_BL[:, 1:]
        return cls(inputs_BL, labels_BL, keep_BL, bool(real_after_padding.any()))

    def __len__(self) -> int:
        """The number of rows."""
        return self.inputs_BL.shape[0]

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on another device."""
        inputs_BL, labels_BL, keep_BL = (
            tensor.to(device, non_blocking=True) for tensor in (self.inputs_BL, self.labels_BL, self.keep_BL)
        )
        return TokenBatch(inputs_BL, labels_BL, keep_BL, self.needs_key_mask)

    def without_labels(self) -> TokenBatch:
        """The same rows with no position that counts."""
        return replace(self, labels_BL=torch.full_like(self.labels_BL, IGNORED))

    def padded(self, rows: int) -> TokenBatch:
        """A batch of ``rows`` rows, of which the last ones, where some are lacking, count nowhere."""
        lacking = max(0, rows - len(self))
        if lacking == 0:
            return self
        inputs_BL, labels_BL, keep_BL = (
            torch.cat([tensor, tensor[:1].expand(lacking, -1)])
            for tensor in (self.inputs_BL, self.labels_BL, self.keep_BL)
        )
        labels_BL[len(self) :] = IGNORED
        return TokenBatch(inputs_BL, labels_BL, keep_BL, self.needs_key_mask)

    def split(self, rows: int) -> list[TokenBatch]:
        """Cut into batches of ``rows`` rows, the last one perhaps shorter."""
        cuts = [slice(begin, begin + rows) for begin in range(0, len(self), rows)]
        return [TokenBatch.of(self.inputs_BL[cut], self.labels_BL[cut], self.keep_BL[cut]) for cut in cuts]
