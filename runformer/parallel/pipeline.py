"""Pipeline parallelism: stages of a model one after the other, and micro-batches on their way through them.

PyTorch's schedules say who computes what when (``torch.distributed.pipelining``); this gives them stages, and what each
micro-batch needs besides the hidden states that come from the stage before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from runformer.models.decoder import TORCH_DTYPES, CausalLM
from runformer.models.part import Span, Stage, even_spans
from runformer.parallel.group import Group
from runformer.parallel.inputs import Inputs, enter_place
from runformer.parallel.mesh import V_SCHEDULES

Loss = Callable[[CausalLM, Tensor, Inputs, int], Tensor]
"""From the last stage, its hidden states, a micro-batch and its number to the loss."""


def stages_of(layers: int, ranks: int, chunks: int, extra: Sequence[int] | None) -> list[Stage]:
    """Cut layers into stages, ``chunks`` for each of ``ranks`` processes, in the order of the layers.

    Args:
        layers: of the whole model.
        ranks: processes of the pipeline.
        chunks: stages of each.
        extra: layers of each stage beyond ``layers // stages``; None: the first ones have one more.
    """
    count = ranks * chunks
    spans = even_spans(layers, count) if extra is None else _spans(layers // count, extra)
    return [Stage(range(*span), index == 0, index == count - 1) for index, span in enumerate(spans)]


def _spans(least: int, extra: Sequence[int]) -> list[Span]:
    ends = [0]
    for more in extra:
        ends.append(ends[-1] + least + more)
    return list(pairwise(ends))


class _StageModule(nn.Module):
    """A stage as PyTorch's schedules call it: with hidden states and a micro-batch's number."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self.model = model
        self.inputs: Sequence[Inputs] = ()

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        inputs = self.inputs[int(number)]
        enter_place(self.model, inputs)
        hidden_BCD: Tensor = self.model(x, positions=inputs.rotary, mask=inputs.mask, caches=inputs.keys)
        return hidden_BCD


class Pipeline:
    """This process's stages of a model, and the schedule by which micro-batches pass through all of them.

    Args:
        models: its stages.
        indices: which these are of all.
        count: how many there are of all.
        group: the processes of the pipeline.
        schedule: PyTorch's name of it, like ``1F1B``.
        spread: over how many processes the positions between layers are shared out.
    """

    def __init__(
        self,
        models: Sequence[CausalLM],
        indices: Sequence[int],
        count: int,
        group: Group,
        *,
        schedule: str,
        spread: int,
    ) -> None:
        self._modules = [_StageModule(model) for model in models]
        self._indices, self._count, self._group, self._name = indices, count, group, schedule
        self._spread = spread
        self._schedules: dict[tuple[int, tuple[int, ...]], Any] = {}
        self._loss: Loss | None = None

    def run(self, micro_batches: Sequence[Inputs], loss: Loss, *, backward: bool) -> list[Tensor]:
        """Pass micro-batches of one shape through all stages, and gradients back; the losses, on the last one.

        All processes of the pipeline call it with the same rows.
        """
        for module in self._modules:
            module.inputs = micro_batches
        self._loss = loss
        if not backward and self._name in V_SCHEDULES:
            return self._down_and_up(micro_batches)
        schedule = self._schedule(len(micro_batches), micro_batches[0].tokens_BC.shape)
        numbers = torch.arange(len(micro_batches))
        losses: list[Tensor] = []
        tokens = (torch.cat([batch.tokens_BC for batch in micro_batches]),) if 0 in self._indices else ()
        run = schedule.step if backward else schedule.eval
        run(*tokens, target=numbers, losses=losses, number=numbers)
        return losses

    def _down_and_up(self, micro_batches: Sequence[Inputs]) -> list[Tensor]:
        """The losses after a forward pass through a V, which PyTorch runs only with a backward pass."""
        rank, last = self._group.rank, self._group.size - 1
        down, up = self._modules
        sent: list[tuple[Tensor, Any]] = []
        begin = (batch.tokens_BC for batch in micro_batches) if rank == 0 else self._received(rank - 1, micro_batches)
        turn = self._passed(down, begin, None if rank == last else rank + 1, sent)
        back = turn if rank == last else self._received(rank + 1, micro_batches)
        ends = self._passed(up, back, None if rank == 0 else rank - 1, sent)
        for _, work in sent:
            work.wait()
        return [self._loss_of(hidden, torch.tensor(number)) for number, hidden in enumerate(ends)]

    def _received(self, sender: int, micro_batches: Sequence[Inputs]) -> Iterator[Tensor]:
        for batch in micro_batches:
            hidden_BCD = torch.empty_like(self._hidden(batch.tokens_BC.shape), device=self._group.device)
            dist.recv(hidden_BCD, group=self._group.handle, group_src=sender)
            yield hidden_BCD

    def _passed(
        self, module: _StageModule, xs: Iterable[Tensor], receiver: int | None, sent: list[tuple[Tensor, Any]]
    ) -> list[Tensor]:
        """What a stage makes of micro-batches, unless another process gets it."""
        kept = []
        for number, x in enumerate(xs):
            out = module(x, torch.tensor(number)).contiguous()
            if receiver is None:
                kept.append(out)
            else:  # held until it is gone
                sent.append((out, dist.isend(out, group=self._group.handle, group_dst=receiver)))
        return kept

    def _hidden(self, shape: Sequence[int]) -> Tensor:
        """Hidden states between stages, without memory."""
        model = self._modules[0].model
        rows, positions = shape
        size = (rows, positions // self._spread, model.options.hidden_size)
        return torch.empty(size, dtype=TORCH_DTYPES[model.precision.compute], device="meta", requires_grad=True)

    def _schedule(self, micro_batches: int, shape: tuple[int, ...]) -> Any:
        key = (micro_batches, tuple(shape))
        if key not in self._schedules:
            self._schedules[key] = self._make_schedule(micro_batches, shape)
        return self._schedules[key]

    def _make_schedule(self, micro_batches: int, shape: tuple[int, ...]) -> Any:
        # Imported late: it takes a second and more.
        from torch.distributed.pipelining import PipelineStage, schedules

        tokens = torch.empty(shape, dtype=torch.int64, device="meta")
        hidden = self._hidden(shape)
        stages = [
            PipelineStage(
                module,
                index,
                self._count,
                self._group.device,
                input_args=tokens if index == 0 else hidden,
                output_args=hidden,
                group=self._group.handle,
            )
            for module, index in zip(self._modules, self._indices, strict=True)
        ]
        kind = schedules.get_schedule_class(self._name)
        several = issubclass(kind, schedules.PipelineScheduleMulti)
        return kind(stages if several else stages[0], micro_batches, loss_fn=self._loss_of, scale_grads=False)

    def _loss_of(self, hidden_BCD: Tensor, number: Tensor) -> Tensor:
        assert self._loss is not None
        module = self._modules[-1]
        return self._loss(module.model, hidden_BCD, module.inputs[int(number)], int(number))
