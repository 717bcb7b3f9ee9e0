"""A model laid out over processes: what this one holds of it, and how all of them compute with it together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from runformer.config.task import ModelOptions, Precision
from runformer.data.batch import TokenBatch
from runformer.models.blocks import LEAST_HEAD
from runformer.models.decoder import CausalLM
from runformer.models.part import Part, Span, local
from runformer.parallel.group import Group, collecting_gradients, copy_over_ranks
from runformer.parallel.inputs import Inputs, enter_place, inputs_of
from runformer.parallel.mesh import Mesh
from runformer.parallel.pipeline import Loss, Pipeline
from runformer.parallel.sharded import let_go
from runformer.parallel.shards import buckets

_TABLE = "model.embed_tokens.weight"


class ParallelModel:
    """This process's part of a model.

    Attributes:
        stages: consecutive layers each; one without a pipeline.
        mesh: this process among the others.
        parts: what is held of each parameter that is here.
        whole: all parameters of the whole model, without memory, in their order there.
        vocabulary: the tokens whose scores are computed here, where the last stage is.
    """

    def __init__(
        self,
        stages: Sequence[CausalLM],
        mesh: Mesh,
        parts: Mapping[str, Part],
        whole: Mapping[str, nn.Parameter],
        *,
        partial: frozenset[str] = frozenset(),
        overlapping: frozenset[str] = frozenset(),
        vocabulary: Span = (0, 0),
        pipeline: Pipeline | None = None,
    ) -> None:
        self.stages = tuple(stages)
        self.mesh = mesh
        self.parts = parts
        self.whole = whole
        self.vocabulary = vocabulary
        self._partial, self._overlapping = partial, overlapping
        self._pipeline = pipeline
        self._copy: nn.Module | None = None

    @property
    def options(self) -> ModelOptions:
        """The shape of the whole model."""
        return self.stages[0].options

    @property
    def precision(self) -> Precision:
        """The dtype of each part of the model."""
        return self.stages[0].precision

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.mesh.world.device

    @property
    def _shares_weights(self) -> bool:
        """Whether this copy of the model keeps some rows of each parameter only."""
        return self.mesh.options.zero >= 2 and self.mesh.shards.size > 1

    @property
    def holds_all(self) -> bool:
        """Whether this process has the whole model."""
        return self.mesh.model.size == 1 and not self._shares_weights

    @property
    def answers_for_loss(self) -> bool:
        """Whether the last stage is here, and no process that computes the same loss comes before this one."""
        return self.stages[-1].model.stage.last and self.mesh.tensor.is_first

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that are here, with their names in the whole model."""
        for stage in self.stages:
            yield from stage.named_parameters()

    def held(self) -> dict[str, Tensor]:
        """What is here of each parameter, in the shape that its part says; with the parameter's memory."""
        return {name: local(parameter.detach()) for name, parameter in self.named_parameters()}

    def train(self, mode: bool = True) -> bool:
        """Set training or evaluation mode; the mode before that."""
        before = self.stages[0].training
        for stage in self.stages:
            stage.train(mode)
        return before

    def inputs(self, batch: TokenBatch, first_row: int = 0) -> Inputs:
        """What this process computes with of whole rows, which begin with its row ``first_row`` of a step."""
        copies, copy = self.mesh.options.data, self.mesh.place.data
        rows_B = torch.arange(first_row, first_row + len(batch), device=self.device) * copies + copy
        blocks = self.device.type == "cuda" and self.options.head_dim >= LEAST_HEAD
        return inputs_of(batch, rows_B, self.mesh.context, self.options.num_layers, blocks=blocks)

    def set_key(self, key: int) -> None:
        """Say on what the random numbers of the next micro-batches hang."""
        for stage in self.stages:
            stage.place.key = torch.tensor(key, device=self.device)

    def forward_backward(self, micro_batches: Sequence[Inputs], loss: Loss) -> list[Tensor]:
        """Add the gradients of micro-batches to those of the parameters here; their losses, on the last stage.

        Gradients are this process's own until ``finish_gradients``, but for plain copies of a model, which send theirs
        while they are computed.
        """
        if self._copy is None and self._pipeline is None:
            self._copy = self.stages[0] if self._shares_weights else self._copy_over_ranks()
        if len(micro_batches) > 1:
            self._make_room_for_gradients()
        if self._pipeline is not None:
            return self._pipeline.run(micro_batches, loss, backward=True)
        assert self._copy is not None, "there are copies or a pipeline"
        losses = []
        for number, inputs in enumerate(micro_batches):
            if number < len(micro_batches) - 1:
                with collecting_gradients(self._copy):
                    value = self._forward(self._copy, inputs, loss, number)
                    value.backward()
            else:
                value = self._forward(self._copy, inputs, loss, number)
                value.backward()
            losses.append(value.detach())
        return losses

    def _copy_over_ranks(self) -> nn.Module:
        options = self.mesh.options
        narrow = options.reduce_dtype == "bfloat16"
        return copy_over_ranks(self.stages[0], self.mesh.replicas, options.gradient_groups, narrow=narrow)

    def _make_room_for_gradients(self) -> None:
        """Let gradients that are added up lie together: made one by one, they would settle among activations.

        Where copies exchange gradients or share them out, PyTorch has made room for them.
        """
        if self._shares_weights or not (self._pipeline is not None or self._copy is self.stages[0]):
            return
        for _, parameter in self.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    @torch.no_grad()
    def forward(self, micro_batches: Sequence[Inputs], loss: Loss) -> list[Tensor]:
        """The losses of micro-batches, on the last stage."""
        if self._pipeline is not None:
            losses = self._pipeline.run(micro_batches, loss, backward=False)
        else:
            losses = [self._forward(self.stages[0], batch, loss, number) for number, batch in enumerate(micro_batches)]
        for stage in self.stages:
            let_go(stage)
        return losses

    def _forward(self, module: nn.Module, inputs: Inputs, loss: Loss, number: int) -> Tensor:
        enter_place(self.stages[0], inputs)
        hidden = module(inputs.tokens_BC, positions=inputs.rotary, mask=inputs.mask, caches=inputs.keys)
        return loss(self.stages[0], hidden, inputs, number)

    @torch.no_grad()
    def finish_gradients(self) -> None:
        """Make every gradient the sum of all that belongs to it, on whichever processes that was computed."""
        gradients = {name: local(p.grad) for name, p in self.named_parameters() if p.grad is not None}
        tensor, ends = self.mesh.tensor, self.mesh.ends
        if tensor.size > 1:
            _sum([gradients[name] for name in sorted(self._partial & gradients.keys())], tensor)
        for name in sorted(self._overlapping & gradients.keys()):
            part, gradient = self.parts[name], gradients[name]
            whole = gradient.new_zeros(part.shape)
            replace(part, owned=part.spans).put(gradient, whole)
            if self._shares_weights:
                self.mesh.shards.sum(whole)
            gradient.copy_(part.take(tensor.sum(whole)))
        if ends.size > 1 and self.options.tie_embeddings and _TABLE in gradients:
            ends.sum(gradients[_TABLE])
        if self._pipeline is not None and self.mesh.replicas.size > 1 and not self._shares_weights:
            narrow = torch.bfloat16 if self.mesh.options.reduce_dtype == "bfloat16" else None
            _sum(list(gradients.values()), self.mesh.replicas, narrow)

    def norm(self, tensors: Mapping[str, Tensor]) -> float:
        """The joint L2 norm of one tensor for each parameter, every element of the whole model counted once."""
        if self.holds_all:
            return float(nn.utils.get_total_norm(list(tensors.values())))
        own = [piece for name, tensor in tensors.items() for piece in self.parts[name].own(tensor)]
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        if own:
            squares += torch.stack([norm.double().square() for norm in torch._foreach_norm(own)]).sum()
        if self._shares_weights:
            self.mesh.shards.sum(squares)
        return math.sqrt(self.mesh.model.sum(squares).item())


def _sum(tensors: Sequence[Tensor], group: Group, dtype: torch.dtype | None = None) -> None:
    """Sum many tensors over a group, in place; ``dtype`` is that of the messages, None: their own."""
    for bucket in buckets(tensors):
        flat = group.sum(torch.cat([item.flatten() for item in bucket]).to(dtype or bucket[0].dtype))
        parts = flat.split([item.numel() for item in bucket])
        torch._foreach_copy_(bucket, [part.view_as(item) for part, item in zip(parts, bucket, strict=True)])
