"""Attention within documents on an accelerator: FlexAttention passes over blocks of keys that no query there sees.

Shape suffixes: B rows, C query positions, S key positions, H query heads, G key-value heads, K head size.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

LEAST_HEAD = 16
"""FlexAttention's kernels want heads of this size at least."""

# torch.nn.attention.flex_attention is imported where documents are met, and not before: it takes more than a second.


def block_mask(documents_BS: Tensor, keep_BS: Tensor, queries: tuple[int, int]) -> BlockMask:
    """Causal attention within documents, to keys that are no padding; a query always sees itself.

    Args:
        documents_BS: the document that each position of whole rows is in.
        keep_BS: where there is no padding.
        queries: the positions that look, at keys up to the last of them.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    begin, end = queries

    def sees(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        at = query + begin
        same = documents_BS[row, at] == documents_BS[row, key]
        return ((key <= at) & same & keep_BS[row, key]) | (key == at)

    rows = documents_BS.shape[0]
    return create_block_mask(sees, rows, None, end - begin, end, device=documents_BS.device)


def attend_in_blocks(q_BHCK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: BlockMask) -> Tensor:
    """Attention of every head by a block mask, ``(B, H, C, K)``."""
    grouped = q_BHCK.shape[1] != k_BGSK.shape[1]
    return _flex_attention()(q_BHCK, k_BGSK, v_BGSK, block_mask=mask, enable_gqa=grouped)  # type: ignore[no-any-return]


@functools.cache
def _flex_attention() -> Any:
    """Compiled: as it is it would compute all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    attend: Any = flex_attention
    return torch.compile(attend)
