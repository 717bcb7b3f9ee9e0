"""The chunked cross-entropy against PyTorch's own, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runformer.data import IGNORED
from runformer.train import loss as loss_module
from runformer.train.loss import cross_entropy


def inputs(rows: int, vocab: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, rows, 24, generator=generator).to(dtype)
    weight = torch.randn(vocab, 24, generator=generator)
    labels = torch.randint(vocab, (2, rows), generator=generator)
    labels[torch.rand(2, rows, generator=generator) < 0.3] = IGNORED
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def reference(hidden: Tensor, weight: Tensor, labels: Tensor, divisor: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same in float64, straight from the definition."""
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logits = F.linear(hidden, weight)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum") / divisor
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss, hidden.grad, weight.grad


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 300), st.sampled_from([1, 64, 1000, 2**23]), st.integers(0, 99))
def test_loss_and_gradients_equal_float64(rows: int, vocab: int, elements: int, seed: int) -> None:
    hidden, weight, labels = inputs(rows, vocab, torch.float32, seed)
    expected = reference(hidden, weight, labels, 17.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss_module._CHUNK_ELEMENTS, "cpu", elements)
        loss = cross_entropy(hidden, weight, labels, 17.0)
    loss.backward()
    for actual, exact in zip((loss, hidden.grad, weight.grad), expected, strict=True):
        assert actual is not None
        # The absolute part: softmax − 1 cancels where the model is sure, in any float32 implementation.
        assert (actual.double() - exact).norm() <= 2e-6 * exact.norm() + 1e-6


def test_bfloat16_rows_give_float32_weight_gradients() -> None:
    hidden, weight, labels = inputs(64, 500, torch.bfloat16)
    expected = reference(hidden, weight, labels, 90.0)
    loss = cross_entropy(hidden, weight, labels, 90.0)
    (loss * 8).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert abs(loss.item() - expected[0].item()) < 2e-2
    assert (weight.grad.double() / 8 - expected[2]).norm() < 2e-2 * expected[2].norm()
    assert (hidden.grad.double() / 8 - expected[1]).norm() < 2e-2 * expected[1].norm()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200), st.sampled_from([1, 24, 24 * 7, 24 * 1000]))
def test_narrow_weight_gradients_do_not_depend_on_the_blocks_they_come_in(vocab: int, elements: int) -> None:
    whole, parts = (inputs(20, vocab, torch.bfloat16) for _ in range(2))
    cross_entropy(*whole, 5.0).backward()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss_module._BLOCK_ELEMENTS, "cpu", elements)
        cross_entropy(*parts, 5.0).backward()
    assert whole[1].grad is not None
    torch.testing.assert_close(parts[1].grad, whole[1].grad, rtol=1e-2, atol=1e-3 * whole[1].grad.abs().max().item())


@given(st.integers(0, 1000), st.integers(1, 300))
def test_chunks_cover_all_rows_once_and_are_of_nearly_equal_length(rows: int, most: int) -> None:
    lengths = [len(range(rows)[chunk]) for chunk in loss_module._chunks(rows, most)]
    assert sum(lengths) == rows
    assert all(0 < length <= most for length in lengths)
    assert len(lengths) == -(-rows // most)


def test_splitting_a_batch_changes_nothing() -> None:
    hidden, weight, labels = inputs(32, 100, torch.float32)
    divisor = float((labels != IGNORED).sum())
    whole = cross_entropy(hidden, weight, labels, divisor)
    halves = [cross_entropy(h, weight, part, divisor) for h, part in zip(hidden, labels, strict=True)]
    torch.testing.assert_close(sum(halves), whole)


def test_a_frozen_head_gets_no_gradient_and_no_positions_give_no_loss() -> None:
    hidden, weight, labels = inputs(8, 50, torch.float32)
    weight.requires_grad_(False)
    cross_entropy(hidden, weight, labels, 1.0).backward()
    assert weight.grad is None
    nothing = cross_entropy(hidden, weight, torch.full_like(labels, IGNORED), 1.0)
    nothing.backward()
    assert nothing.item() == 0.0


def test_without_gradients_only_the_loss_is_computed() -> None:
    hidden, weight, labels = inputs(8, 50, torch.float32)
    with torch.no_grad():
        loss = cross_entropy(hidden, weight, labels, 4.0)
    assert not loss.requires_grad
    torch.testing.assert_close(loss.double(), reference(hidden, weight, labels, 4.0)[0].detach())
