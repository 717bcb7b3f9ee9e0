"""How the next token is picked: greedy, or drawn after Hugging Face's processors in Hugging Face's order.

Shape suffixes: B batch, V vocabulary, T tokens seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runformer.predict.settings import Settings


@dataclass(frozen=True, slots=True)
class Draw:
    """Names one random choice: the run's seed, the prompt's index in the run, the position of the new token.

    The choice depends on nothing else, so a prompt gets the same text in whatever batch it is.
    """

    seed: int
    prompt: int
    position: int

    def uniform(self) -> float:
        """A number in [0, 1) with 53 random bits."""
        key = f"{self.seed}:{self.prompt}:{self.position}".encode()
        return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 11) * 2.0**-53


def pick_tokens(
    scores_BV: Tensor, seen: Sequence[Sequence[int]], draws: Sequence[Draw], settings: Settings
) -> list[int]:
    """The next token of every row.

    Args:
        scores_BV: logits, float32.
        seen: token ids of each row so far, the prompt included; only the repetition penalty reads them.
        draws: the name of each row's random choice; not read when greedy.
        settings: how to pick.
    """
    if settings.repetition_penalty != 1.0:
        scores_BV = penalise_repetition(scores_BV, seen, settings.repetition_penalty)
    if not settings.do_sample:
        greedy: list[int] = scores_BV.argmax(dim=-1).tolist()
        return greedy
    scores_BV = scores_BV / settings.temperature
    if settings.top_k > 0:
        scores_BV = keep_top_k(scores_BV, settings.top_k)
    if settings.top_p < 1.0:
        scores_BV = keep_top_p(scores_BV, settings.top_p)
    return _sample(scores_BV, [draw.uniform() for draw in draws])


def penalise_repetition(scores_BV: Tensor, seen: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Divide the positive scores of tokens already seen by ``penalty``, multiply the negative (arXiv:1909.05858)."""
    scores_BV = scores_BV.clone()
    for row_V, ids in zip(scores_BV, seen, strict=True):
        index_T = torch.tensor(sorted(set(ids)), device=scores_BV.device)
        score_T = row_V[index_T]
        row_V[index_T] = torch.where(score_T < 0, score_T * penalty, score_T / penalty)
    return scores_BV


def keep_top_k(scores_BV: Tensor, k: int) -> Tensor:
    """Set scores below the k-th highest to minus infinity; equals of the k-th stay."""
    threshold_B1 = scores_BV.topk(min(k, scores_BV.shape[-1])).values[:, -1:]
    return scores_BV.masked_fill(scores_BV < threshold_B1, float("-inf"))


def keep_top_p(scores_BV: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches ``p`` (arXiv:1904.09751), at least one."""
    ascending_BV, order_BV = scores_BV.sort(dim=-1)
    remove_BV = ascending_BV.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    remove_BV[:, -1] = False
    return scores_BV.masked_fill(remove_BV.scatter(1, order_BV, remove_BV), float("-inf"))


def _sample(scores_BV: Tensor, uniforms: Sequence[float]) -> list[int]:
    """Invert the cumulative distribution, in float64: a rounded sum in float32 would favour early tokens."""
    cumulative_BV = scores_BV.double().softmax(dim=-1).cumsum(dim=-1)
    uniform_B1 = torch.tensor(uniforms, dtype=torch.float64, device=scores_BV.device).unsqueeze(1)
    tokens_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True)
    drawn: list[int] = tokens_B1.squeeze(1).tolist()
    return drawn
