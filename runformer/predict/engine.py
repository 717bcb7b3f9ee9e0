"""The generation engine: batches of token ids in, longer token ids out, with a key-value cache.

A batch of unequal prompts is padded on the left, so that all rows write the same cache slot at each step.
Padding is masked and positions count from each row's own first token: a row's text is what it would be alone.

Shape suffixes: B batch, L prompt positions, S cache slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runformer.models.decoder import TORCH_DTYPES
from runformer.parallel.model import ParallelModel
from runformer.predict.cache import StaticCache, round_up
from runformer.predict.compiling import CompiledStep, Step, fix_in_place
from runformer.predict.sampling import Draw, pick_tokens
from runformer.predict.scores import Scores
from runformer.predict.settings import LengthLimit, Settings


@dataclass
class _Row:
    """One prompt on its way: ``ids`` grow until an end token or until there are ``limit`` of them."""

    index: int
    ids: list[int]
    limit: int
    done: bool = False

    def append(self, token: int, eos_ids: frozenset[int]) -> None:
        if not self.done:
            self.ids.append(token)
            self.done = token in eos_ids or len(self.ids) >= self.limit


@dataclass
class _State:
    """Where a batch stands on the device. ``visible_BS``: which slots may be attended to."""

    cache: StaticCache
    visible_BS: Tensor
    all_visible: bool
    positions_B1: Tensor
    slot: int


class Generator:
    """Continues prompts with one model.

    Args:
        model: with its weights, on its device; or this process's part of it.
        settings: how tokens are picked.
        eos_ids: tokens that end a text; they stay in the ids.
        lengths: how long texts may become.
        seed: of the run.
        compile: run the decode step through ``torch.compile``.
    """

    def __init__(
        self,
        model: ParallelModel,
        settings: Settings,
        *,
        eos_ids: frozenset[int],
        lengths: LengthLimit,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        model.train(False)
        self._scores = Scores(model)
        self._model = self._scores.stage
        self._settings = settings
        self._eos_ids = eos_ids
        self._lengths = lengths
        self._seed = seed
        self._device = model.device
        pad_id = model.options.pad_token_id
        # As in training, keys that are padding are not seen, wherever they stand. Where the same token also ends
        # texts it is more than padding (a chat's turns end with it), and it is seen: that is Hugging Face's rule.
        self._hidden_id = None if pad_id in eos_ids else pad_id
        self._compile = compile
        self._decode: Step = CompiledStep(self._scores, self._device) if compile else self._scores
        self._cache: StaticCache | None = None

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], first_index: int = 0, stride: int = 1) -> list[list[int]]:
        """Continue each prompt up to a token that ends it or to its longest length.

        Args:
            prompts: token ids, at least one a prompt.
            first_index: number of the first prompt in the run; random choices are named by it.
            stride: from each prompt's number to the next one's.

        Returns:
            For each prompt its ids and those of the continuation.

        Raises:
            PredictError: a prompt leaves no room for one more token.
        """
        rows = [_Row(first_index + i * stride, list(ids), self._lengths.of(len(ids))) for i, ids in enumerate(prompts)]
        state, scores_BV = self._prefill(rows)
        while True:
            tokens = self._pick(rows, scores_BV)
            for row, token in zip(rows, tokens, strict=True):
                row.append(token, self._eos_ids)
            if all(row.done for row in rows):
                return [row.ids for row in rows]
            scores_BV = self._advance(state, tokens)

    def _pick(self, rows: Sequence[_Row], scores_BV: Tensor) -> list[int]:
        draws = [Draw(self._seed, row.index, len(row.ids)) for row in rows]
        return pick_tokens(scores_BV, [row.ids for row in rows], draws, self._settings)

    def _prefill(self, rows: Sequence[_Row]) -> tuple[_State, Tensor]:
        """Run the prompts; give the state after them and the scores ``(B, V)`` of each row's next token."""
        width = max(len(row.ids) for row in rows)
        padding = [width - len(row.ids) for row in rows]
        tokens_BL = torch.tensor([[0] * pad + row.ids for pad, row in zip(padding, rows, strict=True)])
        positions_BL = torch.arange(width) - torch.tensor(padding).unsqueeze(1)
        visible_BL = (positions_BL >= 0) & self._may_be_seen(tokens_BL)
        mask = None if visible_BL.all() else _causal_mask(visible_BL)

        cache = self._get_cache(len(rows), max(pad + row.limit for pad, row in zip(padding, rows, strict=True)))
        visible_BS = torch.zeros(len(rows), cache.capacity, dtype=torch.bool)
        visible_BS[:, :width] = visible_BL
        state = _State(cache, visible_BS.to(self._device), mask is None, positions_BL[:, -1:].to(self._device), width)
        cache.point(torch.arange(width, device=self._device), width)
        mask = None if mask is None else mask.to(self._device)
        positions_BL = positions_BL.clamp(min=0).to(self._device)
        return state, self._scores(tokens_BL.to(self._device), positions_BL, mask, cache.layers)

    def _advance(self, state: _State, tokens: Sequence[int]) -> Tensor:
        """Run one token a row; give the scores ``(B, V)`` of the next."""
        tokens_B1 = torch.tensor(tokens, device=self._device).unsqueeze(1)
        seen_B1 = self._may_be_seen(tokens_B1)
        state.visible_BS[:, state.slot] = seen_B1[:, 0]
        state.all_visible = state.all_visible and self._hidden_id not in tokens
        state.positions_B1 = state.positions_B1 + 1
        # Compiled code has one shape: all slots, those of the future masked.
        window = state.cache.capacity if self._compile else state.slot + 1
        state.cache.point(torch.tensor([state.slot], device=self._device), window)
        state.slot += 1
        mask = None if state.all_visible and not self._compile else state.visible_BS[:, None, None, :window]
        return self._decode(tokens_B1, state.positions_B1, mask, state.cache.layers)

    def _may_be_seen(self, tokens: Tensor) -> Tensor:
        """Boolean, in the shape of ``tokens``."""
        return torch.ones_like(tokens, dtype=torch.bool) if self._hidden_id is None else tokens != self._hidden_id

    def _get_cache(self, batch: int, length: int) -> StaticCache:
        capacity = round_up(length) if self._compile else length
        # Compiled code knows the memory of its cache, so a cache of the right size is used again.
        if self._cache is None or (self._cache.batch, self._cache.capacity) != (batch, capacity):
            dtype = TORCH_DTYPES[self._model.precision.compute]
            self._cache = StaticCache(self._model, batch, capacity, dtype=dtype, device=self._device)
            if self._compile:
                fix_in_place(self._cache)
        return self._cache


def _causal_mask(visible_BL: Tensor) -> Tensor:
    """``(B, 1, L, L)``: each position sees the visible ones up to itself, or itself where there are none."""
    length = visible_BL.shape[1]
    mask_BLL = visible_BL.unsqueeze(1) & torch.ones(length, length, dtype=torch.bool).tril()
    blind_BL1 = ~mask_BLL.any(dim=-1, keepdim=True)
    return (mask_BLL | (blind_BL1 & torch.eye(length, dtype=torch.bool))).unsqueeze(1)
