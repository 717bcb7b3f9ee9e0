"""Cross-entropy over a large vocabulary without ever holding all logits.

Rows whose label counts are taken in chunks; each chunk's logits live just long enough to give its loss and
its gradients, which are computed in the forward pass. Against keeping logits this saves their memory three
times over (logits, their float32 copy, their gradient); against recomputing them, one matrix product in four.

Shape suffixes: N rows (positions of a batch), D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from runformer.data import IGNORED
from runformer.models.layers import at_least_float32
from runformer.parallel.group import Group
from runformer.parallel.model import ParallelModel

_CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**27, "npu": 2**27}
"""Logits held at a time: 32 MiB of float32 on a CPU stay near its caches, an accelerator wants large products."""

_BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**27, "npu": 2**27}
"""Elements of a weight gradient that are computed in one product where it must be widened afterwards."""


def chunk_elements(device_type: str) -> int:
    """How many logits are held at a time on a kind of device."""
    return _CHUNK_ELEMENTS[device_type]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The part of a vocabulary whose scores this process computes, where several share it.

    Attributes:
        begin: its first token.
        end: one past its last.
        size: tokens of all parts together.
        group: the processes that share it.
    """

    begin: int
    end: int
    size: int
    group: Group

    @property
    def widest(self) -> int:
        """Tokens of the largest part."""
        return -(-self.size // self.group.size)

    def reduce(self, normaliser_N1: Tensor, scores_N1: Tensor) -> tuple[Tensor, Tensor]:
        """The log-sum-exp over all parts, and each label's score, from those of this part (scores elsewhere are 0)."""
        largest_N1 = self.group.largest(normaliser_N1.clone())
        sums_N2 = self.group.sum(torch.cat([(normaliser_N1 - largest_N1).exp(), scores_N1], -1))
        return largest_N1 + sums_N2[:, :1].log(), sums_N2[:, 1:]


def vocabulary_of(model: ParallelModel) -> Vocabulary | None:
    """The tokens whose scores this process computes; None: all."""
    group = model.mesh.tensor
    return None if group.size == 1 else Vocabulary(*model.vocabulary, model.options.vocab_size, group)


def cross_entropy(
    hidden: Tensor,
    head_weight_VD: Tensor,
    labels: Tensor,
    divisor: float | Tensor,
    vocabulary: Vocabulary | None = None,
) -> Tensor:
    """Sum of the token losses ÷ ``divisor``.

    Args:
        hidden: ``(..., D)`` hidden states in the compute dtype.
        head_weight_VD: the output layer's weight, in its own dtype.
        labels: ``(...)`` token ids; ``IGNORED`` where a position does not count.
        divisor: the number of counted tokens of the *global* batch, over all micro-batches and devices, so
            that splitting a batch never changes the loss or its gradient. As a tensor (a float32 scalar on the
            device of ``hidden``) nobody waits for it.
        vocabulary: which rows of the weight are here; None: all. The gradient of ``hidden`` is then this process's
            part of a sum.

    Returns:
        A float32 scalar, the same on all processes that share the vocabulary. It may be differentiated
        again only with the same gradient.
    """
    counted = labels.flatten() != IGNORED
    rows_ND = hidden.flatten(0, -2)[counted]
    labels_N = labels.flatten()[counted]
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        rows_ND, head_weight_VD, labels_N, divisor, vocabulary
    )
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_ND: Tensor,
        head_weight_VD: Tensor,
        labels_N: Tensor,
        divisor: float | Tensor,
        vocabulary: Vocabulary | None,
    ) -> Tensor:
        weight_VD = head_weight_VD.to(rows_ND.dtype)
        widest = weight_VD.shape[0] if vocabulary is None else vocabulary.widest
        grad_rows_ND = torch.empty_like(rows_ND) if ctx.needs_input_grad[0] else None
        grad_weight_VD = torch.zeros_like(head_weight_VD) if ctx.needs_input_grad[1] else None
        loss = at_least_float32(rows_ND.new_zeros(()))
        for chunk in _chunks(len(rows_ND), max(1, chunk_elements(rows_ND.device.type) // widest)):
            logits = at_least_float32(F.linear(rows_ND[chunk], weight_VD))
            normaliser_N1, scores_N1, picked_N1, is_here_N1 = _look_up(logits, labels_N[chunk, None], vocabulary)
            loss += (normaliser_N1 - scores_N1).sum()
            if not any(ctx.needs_input_grad):
                continue
            # softmax − one-hot, in place of the logits
            probabilities = logits.sub_(normaliser_N1).exp_()
            probabilities.scatter_add_(-1, picked_N1, -is_here_N1)
            grad_logits = probabilities.div_(divisor).to(rows_ND.dtype)
            if grad_rows_ND is not None:
                grad_rows_ND[chunk] = grad_logits @ weight_VD
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, grad_logits.T, rows_ND[chunk])
        ctx.save_for_backward(grad_rows_ND, grad_weight_VD)
        ctx.is_scaled = False
        return loss / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_rows_ND, grad_weight_VD = ctx.saved_tensors
        # In place, since nothing else holds them: a tied vocabulary's gradient is the largest tensor of all. Schedules
        # that compute gradients of inputs and of weights at different times come here twice, with one gradient: by
        # ``data``, which does not count as a change, autograd hands out what is saved again.
        for saved in (grad_rows_ND, grad_weight_VD):
            if saved is not None and not ctx.is_scaled:
                saved.data.mul_(gradient)
        ctx.is_scaled = True
        return grad_rows_ND, grad_weight_VD, None, None, None


def _look_up(logits: Tensor, labels_N1: Tensor, vocabulary: Vocabulary | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each row's log-sum-exp and its label's score; the label's column here, and 1 where it is here, else 0."""
    normaliser_N1 = logits.logsumexp(-1, keepdim=True)
    if vocabulary is None:
        return normaliser_N1, logits.gather(-1, labels_N1), labels_N1, torch.ones_like(normaliser_N1)
    is_here_N1 = ((labels_N1 >= vocabulary.begin) & (labels_N1 < vocabulary.end)).to(logits.dtype)
    picked_N1 = (labels_N1 - vocabulary.begin).clamp(0, logits.shape[-1] - 1)
    scores_N1 = logits.gather(-1, picked_N1) * is_here_N1
    return *vocabulary.reduce(normaliser_N1, scores_N1), picked_N1, is_here_N1


def _chunks(rows: int, most: int) -> Iterator[slice]:
    """Slices of at most ``most`` rows, nearly equal: a product with a few left over costs as much as a whole one."""
    size = -(-rows // max(1, -(-rows // most))) or 1
    return (slice(start, start + size) for start in range(0, rows, size))


def _add_product(total_VD: Tensor, left_VN: Tensor, right_ND: Tensor) -> None:
    """``total += left · right``, in blocks where the product is of a narrower dtype.

    A whole product and its copy in the wider dtype would be among the largest tensors of a step.
    """
    if total_VD.dtype == left_VN.dtype:
        total_VD.addmm_(left_VN, right_ND)
        return
    for rows in _chunks(len(total_VD), _BLOCK_ELEMENTS[total_VD.device.type] // total_VD.shape[1] or 1):
        total_VD[rows].add_(left_VN[rows] @ right_ND)
