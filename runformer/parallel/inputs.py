"""What a process computes with of a batch: its positions of each row, and which keys they see.

Shape suffixes: B rows, L positions, C this process's positions, S key positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runformer.data import IGNORED
from runformer.data.batch import TokenBatch
from runformer.models.blocks import block_mask
from runformer.models.decoder import CausalLM, LayerCache, Mask
from runformer.models.part import Span, even_spans
from runformer.parallel.collectives import gather_positions
from runformer.parallel.group import Group

_KEY_POSITIONS = 2  # the dimension of keys_BGLK


@dataclass(frozen=True, slots=True)
class Inputs:
    """A micro-batch as a process takes part in it.

    Attributes:
        tokens_BC: int64 token ids.
        labels_BC: int64, as in ``TokenBatch``.
        rows_B: numbers of the rows in the global batch.
        positions_C: of these tokens in their rows.
        places_BC: of these tokens in their documents, where positions start anew in each; None: ``positions_C``.
        mask: which keys each query sees; None: plain causal attention.
        counted: how many positions here count in the loss.
        keys: for each layer, where the keys of earlier positions come from; None: all are here.
    """

    tokens_BC: Tensor
    labels_BC: Tensor
    rows_B: Tensor
    positions_C: Tensor
    places_BC: Tensor | None
    mask: Mask | None
    counted: int
    keys: Sequence[LayerCache] | None

    @property
    def rotary(self) -> Tensor:
        """The positions that turn queries and keys: ``(C,)`` or ``(B, C)``."""
        return self.positions_C if self.places_BC is None else self.places_BC


def inputs_of(batch: TokenBatch, rows_B: Tensor, context: Group, layers: int, *, blocks: bool = False) -> Inputs:
    """A batch's part for one of the processes that share its sequences.

    Args:
        batch: whole rows, not yet on the device.
        rows_B: their numbers in the global batch.
        context: those processes; each has consecutive positions, as many as the others.
        layers: how many there are in the model's stage.
        blocks: as for ``attention_mask``.
    """
    begin, end = even_spans(batch.inputs_BL.shape[1], context.size)[context.rank]
    counted = int((batch.labels_BL[:, begin:end] != IGNORED).sum())  # here, where nothing has to be waited for
    batch = batch.to(context.device)
    positions_C = torch.arange(begin, end, device=batch.inputs_BL.device)
    mask = attention_mask(batch, (begin, end), blocks=blocks)
    keys = None if context.size == 1 else [_SharedKeys(context, end)] * layers
    inputs_BC, labels_BC, places_BC = (
        tensor if tensor is None or context.size == 1 else tensor[:, begin:end]
        for tensor in (batch.inputs_BL, batch.labels_BL, batch.positions_BL)
    )
    assert inputs_BC is not None
    assert labels_BC is not None
    return Inputs(inputs_BC, labels_BC, rows_B, positions_C, places_BC, mask, counted, keys)


def enter_place(model: CausalLM, inputs: Inputs) -> None:
    """Tell a model where in the run what it is given next stands."""
    model.place.rows_B, model.place.positions_L = inputs.rows_B, inputs.positions_C


def attention_mask(batch: TokenBatch, queries: Span | None = None, *, blocks: bool = False) -> Mask | None:
    """Which keys each query sees, boolean ``(B, 1, C, S)``; None where plain causal attention gives the same.

    Keys that are padding are hidden, in the middle of a row too, as the original does, and so are those of other
    documents. A query always sees itself: a row of the mask without any key would give NaN.

    Args:
        batch: whole rows.
        queries: the positions that look, at keys up to the last of them; None: all.
        blocks: whether documents make a ``BlockMask``, by which whole blocks of keys are passed over.
    """
    length, device = batch.inputs_BL.shape[1], batch.inputs_BL.device
    begin, end = queries or (0, length)
    if batch.documents_BL is None and not batch.needs_key_mask:
        return None if begin == 0 else _causal_at_the_end(end - begin, end)
    if batch.documents_BL is not None and blocks:
        return block_mask(batch.documents_BL, batch.keep_BL, (begin, end))
    queries_C1 = torch.arange(begin, end, device=device).unsqueeze(1)
    keys_S = torch.arange(end, device=device)
    seen = keys_S <= queries_C1
    if batch.needs_key_mask:
        seen = seen & batch.keep_BL[:, None, None, :end]
    if batch.documents_BL is not None:
        seen = seen & (batch.documents_BL[:, None, begin:end, None] == batch.documents_BL[:, None, None, :end])
    return seen | (keys_S == queries_C1)


def _causal_at_the_end(queries: int, keys: int) -> Tensor:
    """Causal attention of the last of the keys' positions, which GPUs need no memory for."""
    from torch.nn.attention.bias import causal_lower_right  # imported late: it takes more than a second

    return causal_lower_right(queries, keys)


class _SharedKeys:
    """Context parallelism: each process has the keys of some positions, and gathers those before its own."""

    def __init__(self, group: Group, end: int) -> None:
        self._group = group
        self._end = end

    def update(self, keys_BGCK: Tensor, values_BGCK: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions up to the last one here."""
        keys_BGSK, values_BGSK = (gather_positions(x, self._group, _KEY_POSITIONS) for x in (keys_BGCK, values_BGCK))
        return keys_BGSK[:, :, : self._end], values_BGSK[:, :, : self._end]
