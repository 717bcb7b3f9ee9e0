"""From tokens to the scores of the next ones, whichever processes hold the model.

Shape suffixes: B batch, L positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from runformer.models.decoder import TORCH_DTYPES, LayerCache
from runformer.parallel.model import ParallelModel


class Scores:
    """Runs a model, or this process's part of one, on new tokens; all that share it do so together.

    Args:
        model: of one stage here.
    """

    def __init__(self, model: ParallelModel) -> None:
        (self.stage,) = model.stages
        self._mesh = model.mesh
        self._vocabulary = model.vocabulary

    def __call__(
        self, tokens_BL: Tensor, positions: Tensor, mask: Tensor | None, layers: Sequence[LayerCache]
    ) -> Tensor:
        """Scores ``(B, V)`` float32 of the token after the last of ``tokens_BL``; the same on all processes."""
        x = tokens_BL if self.stage.model.stage.first else self._receive(tokens_BL)
        x_BLD = self.stage(x, positions=positions, mask=mask, caches=layers)
        pipeline = self._mesh.pipeline
        if pipeline.size == 1:
            return self._scores(x_BLD)
        if self.stage.model.stage.last:
            scores_BV = self._scores(x_BLD)
        else:
            dist.send(x_BLD.contiguous(), group=pipeline.handle, group_dst=pipeline.rank + 1)
            scores_BV = torch.empty(len(x_BLD), self.stage.options.vocab_size, device=x_BLD.device)
        dist.broadcast(scores_BV, group=pipeline.handle, group_src=pipeline.size - 1)
        return scores_BV

    def _receive(self, tokens_BL: Tensor) -> Tensor:
        compute = TORCH_DTYPES[self.stage.precision.compute]
        x_BLD = torch.empty((*tokens_BL.shape, self.stage.options.hidden_size), dtype=compute, device=tokens_BL.device)
        pipeline = self._mesh.pipeline
        dist.recv(x_BLD, group=pipeline.handle, group_src=pipeline.rank - 1)
        return x_BLD

    def _scores(self, hidden_BLD: Tensor) -> Tensor:
        scores = self.stage.logits(hidden_BLD[:, -1])
        if self._mesh.tensor.size == 1:
            return scores
        begin, end = self._vocabulary
        whole_BV = scores.new_zeros(len(scores), self.stage.options.vocab_size)
        whole_BV[:, begin:end] = scores
        return self._mesh.tensor.sum(whole_BV)
