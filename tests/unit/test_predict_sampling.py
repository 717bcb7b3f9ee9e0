"""Picking tokens: Hugging Face's processors are the oracle; draws are reproducible and fair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from runformer.predict.sampling import Draw, keep_top_k, keep_top_p, penalise_repetition, pick_tokens
from runformer.predict.settings import Settings

VOCABULARY = 41


def random_scores(seed: int, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 4


def draws_of(count: int, seed: int = 0) -> list[Draw]:
    return [Draw(seed, 0, position) for position in range(count)]


@given(st.integers(0, 10**6), st.integers(1, VOCABULARY + 5))
def test_top_k_is_theirs(seed: int, k: int) -> None:
    scores = random_scores(seed)
    scores[0, 3] = scores[0, 7] = scores[0].max()  # equals of the k-th highest all stay
    assert torch.equal(keep_top_k(scores, k), TopKLogitsWarper(k)(None, scores))


@given(st.integers(0, 10**6), st.floats(0.01, 0.999))
def test_top_p_is_theirs(seed: int, p: float) -> None:
    scores = random_scores(seed)
    assert torch.equal(keep_top_p(scores, p), TopPLogitsWarper(p)(None, scores))


@given(
    st.integers(0, 10**6),
    st.floats(0.2, 5.0),
    st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=6, max_size=6), min_size=3, max_size=3),
)
def test_repetition_penalty_is_theirs(seed: int, penalty: float, seen: list[list[int]]) -> None:
    scores = random_scores(seed)
    kept = scores.clone()
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(seen), scores.clone())
    assert torch.equal(penalise_repetition(scores, seen, penalty), expected)
    assert torch.equal(scores, kept), "the scores given are not changed"


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6), st.floats(0.3, 3.0), st.integers(1, VOCABULARY), st.floats(0.1, 0.99), st.floats(0.5, 2.0)
)
def test_draws_follow_the_distribution_that_their_processors_leave(
    seed: int, temperature: float, k: int, p: float, penalty: float
) -> None:
    count, seen = 400, [5, 9, 9]
    row = random_scores(seed, rows=1)
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(penalty),
            TemperatureLogitsWarper(temperature),
            TopKLogitsWarper(k),
            TopPLogitsWarper(p),
        ]
    )
    expected = processors(torch.tensor([seen]), row.clone()).softmax(-1)[0]
    options = Settings(
        do_sample=True, temperature=temperature, top_k=k, top_p=p, repetition_penalty=penalty, max_length=1
    )
    drawn = pick_tokens(row.expand(count, -1), [seen] * count, draws_of(count, seed), options)
    share = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY) / count
    assert torch.all(share[expected == 0] == 0)
    # Six standard deviations of a share of `count` draws, for each of 41 tokens in 20 examples.
    assert torch.all((share - expected).abs() <= 6 * (expected * (1 - expected) / count).sqrt() + 1e-6)


def test_greedy_ignores_what_only_shapes_draws() -> None:
    scores = random_scores(1)
    options = Settings(temperature=0.1, top_k=1, top_p=0.1, max_length=1)
    assert pick_tokens(scores, [[]] * 3, draws_of(3), options) == scores.argmax(-1).tolist()


def test_greedy_heeds_the_repetition_penalty() -> None:
    scores = torch.tensor([[2.0, 1.9, -5.0], [-1.0, -1.1, -5.0]])
    options = Settings(repetition_penalty=1.2, max_length=1)
    assert pick_tokens(scores, [[0], [0]], draws_of(2), options) == [1, 1]


def test_a_draw_depends_on_its_name_alone() -> None:
    scores, options = torch.zeros(1, 1000), Settings(do_sample=True, top_k=0, max_length=1)
    names = [Draw(seed, prompt, position) for seed in (1, 2) for prompt in (0, 1) for position in (5, 6, 50)]
    alone = [pick_tokens(scores, [[]], [name], options)[0] for name in names]
    together = pick_tokens(scores.expand(len(names), -1), [[]] * len(names), names, options)
    assert alone == together
    assert len(set(alone)) == len(names)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_draw_tokens_that_may_be_drawn(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Draw, "uniform", lambda _: uniform)
    scores = torch.full((1, 9), float("-inf"))
    scores[0, 3:6] = torch.tensor([1.0, 2.0, 1.0])
    options = Settings(do_sample=True, max_length=1)
    assert pick_tokens(scores, [[]], draws_of(1), options) == [3 if uniform == 0 else 5]


def test_uniform_numbers_are_spread_over_the_unit_interval() -> None:
    numbers = sorted(Draw(0, prompt, position).uniform() for prompt in range(40) for position in range(50))
    assert numbers[0] >= 0
    assert numbers[-1] < 1
    # Kolmogorov-Smirnov distance of 2,000 numbers; 0.044 is exceeded by chance once in a thousand.
    assert max(abs(number - rank / 2000) for rank, number in enumerate(numbers)) < 0.044
