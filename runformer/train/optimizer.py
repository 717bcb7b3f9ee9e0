"""Optimizers over a model's trainable parameters, their state by parameter name, and the gradient norm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from runformer.checkpoint.held import SavedState
from runformer.config.task import OptimizerOptions
from runformer.errors import CheckpointError
from runformer.models.layers import at_least_float32
from runformer.models.part import Span, local
from runformer.parallel.group import alone
from runformer.parallel.shards import Shards

MOMENTS = ("exp_avg", "exp_avg_sq")
"""PyTorch's names of Adam's first and second moment; a checkpoint holds ``<moment>.<parameter name>``."""

_NO_NOTES: Mapping[str, Any] = {}


class HasParameters(Protocol):
    """A module, or a model that lies over several processes."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Its parameters, or those that are here."""
        ...


class NamedOptimizer(ABC):
    """What a training step and a checkpoint need of an optimizer.

    Attributes:
        parameters: the trainable ones by name.
        updates: how many updates were made.
    """

    def __init__(self, model: HasParameters) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.updates = 0

    def decay_groups(self, decay: float) -> list[tuple[list[str], float]]:
        """The parameters' names with their weight decay: ``decay`` for all but biases and 1-D ones (norms)."""
        decayed = [name for name, p in self.parameters.items() if p.ndim > 1 and not name.endswith(".bias")]
        others = [name for name in self.parameters if name not in set(decayed)]
        return [(names, rate) for names, rate in ((decayed, decay), (others, 0.0)) if names]

    def gradients(self) -> dict[str, Tensor]:
        """Those that there are, by their parameters' names: what is here of them."""
        return {name: local(p.grad) for name, p in self.parameters.items() if p.grad is not None}

    def clip_gradients(self, max_norm: float, norm: float) -> None:
        """Scale all gradients so that their joint norm, now ``norm``, is at most ``max_norm``."""
        if norm > max_norm:
            self.scale_gradients(max_norm / (norm + 1e-6))

    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients."""
        torch._foreach_mul_(list(self.gradients().values()), factor)

    def zero_grad(self) -> None:
        """Drop all gradients, and their memory."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @abstractmethod
    def update(self, learning_rate: float) -> None:
        """One step, from the gradients that the parameters hold."""

    @abstractmethod
    def state(self) -> Mapping[str, Tensor]:
        """The tensors to save, ``<key>.<parameter name>``; empty before the first update."""

    def span(self, key: str) -> Span | None:  # noqa: ARG002
        """Which elements a tensor of the state is of, where it has some of what is held of its parameter; None: all."""
        return None

    def outlines(self, whole: Mapping[str, Tensor]) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:  # noqa: ARG002
        """Shape and dtype of every tensor of the state of the whole model, whose parameters are given."""
        return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in self.state().items()}

    def notes(self) -> Mapping[str, Any]:
        """The rest to save, as JSON can hold it; empty for AdamW."""
        return {}

    @abstractmethod
    def load_state(self, tensors: SavedState, updates: int, notes: Mapping[str, Any]) -> None:
        """Take over a saved state and the number of updates that made it.

        Args:
            tensors: those of ``state()`` (they are copied), among others.
            updates: how many updates made them.
            notes: those of ``notes()``.

        Raises:
            CheckpointError: the state is another optimizer's or another model's.
        """


class NamedAdamW(NamedOptimizer):
    """PyTorch's fused AdamW (arXiv:1711.05101). Decay skips biases and 1-D parameters (norms).

    Moments are float32, and so is the arithmetic, whatever the dtype of a parameter (but float64, where they are as
    wide): the second moment of small gradients is zero in float16. The original does the same.

    It calls PyTorch's functional form: the optimizer classes import the compiler when they are made, which would
    add a second to the start of every run, and keep their state by position instead of by name.

    With ``shards`` each process of a group has the moments of its share of the elements, and updates those.
    """

    def __init__(self, model: HasParameters, options: OptimizerOptions, shards: Shards | None = None) -> None:
        super().__init__(model)
        self._options = options
        self._shards = shards or Shards(alone(torch.device("cpu")))
        # Made at once: a run too large for the memory then fails in its first step, not in its second.
        self._moments = {
            f"{moment}.{name}": at_least_float32(torch.zeros_like(self._own(parameter)))
            for moment in MOMENTS
            for name, parameter in self.parameters.items()
        }

    def _own(self, tensor: Tensor) -> Tensor:
        """What this process updates of a parameter, and of its gradient."""
        return self._shards.own(local(tensor.detach()))

    @torch.no_grad()
    def update(self, learning_rate: float) -> None:
        """One step of AdamW, from the gradients that the parameters hold."""
        for names, decay in self.decay_groups(self._options.weight_decay):
            own = {name: share for name in names if (share := self._own(self.parameters[name])).numel()}
            wide = [name for name, share in own.items() if share.dtype in (torch.float32, torch.float64)]
            if wide:
                self._update(wide, [own[name] for name in wide], learning_rate, decay)
            for name in own.keys() - set(wide):  # so one wide copy exists at a time
                copy = own[name].float()
                self._update([name], [copy], learning_rate, decay)
                own[name].copy_(copy)
        self._shards.spread([local(parameter.detach()) for parameter in self.parameters.values()])
        self.updates += 1

    def _update(self, names: list[str], values: list[Tensor], learning_rate: float, decay: float) -> None:
        """Update float32 ``values``, which are those of the named parameters."""
        gradients = self.gradients()
        assert gradients.keys() >= set(names), "every trainable parameter takes part in the loss"
        # The kernels count up a step of each parameter's own; ours are all the same. After infinitely many steps
        # there is nothing left to correct.
        done = float(self.updates) if self._options.bias_correction else math.inf
        step = torch.tensor(done, device=values[0].device)
        adamw(
            values,
            [at_least_float32(self._own(gradients[name])) for name in names],
            [self._moments[f"exp_avg.{name}"] for name in names],
            [self._moments[f"exp_avg_sq.{name}"] for name in names],
            [],
            [step.clone() for _ in names],
            fused=step.device.type in ("cpu", "cuda"),
            amsgrad=False,
            beta1=self._options.betas[0],
            beta2=self._options.betas[1],
            lr=learning_rate,
            weight_decay=decay,
            eps=self._options.eps,
            maximize=False,
        )

    def state(self) -> Mapping[str, Tensor]:
        """The moments, ``<moment>.<parameter name>``; empty before the first update."""
        return self._moments if self.updates else {}

    def span(self, key: str) -> Span | None:
        """Of a moment, flattened, the elements that this process has; None: what it holds of the parameter."""
        return self._shards.span(self._held(key))

    def outlines(self, whole: Mapping[str, Tensor]) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every moment, of all parameters that are trained."""
        if not self.updates:
            return {}
        trained = {name: p for name, p in whole.items() if p.requires_grad}
        return {
            f"{moment}.{name}": (tuple(p.shape), torch.promote_types(p.dtype, torch.float32))
            for moment in MOMENTS
            for name, p in trained.items()
        }

    def _held(self, key: str) -> Tensor:
        """What is here of the parameter of a moment; all shares of the moment together are of its shape."""
        return local(self.parameters[key.partition(".")[2]].detach())

    def load_state(self, tensors: SavedState, updates: int, notes: Mapping[str, Any] = _NO_NOTES) -> None:
        """Take over moments (copied) and the number of updates that made them.

        Raises:
            CheckpointError: a moment is missing or has another shape than its parameter.
        """
        require_same_kind(notes, "AdamW")
        if updates == 0:
            return  # zeros, as they are
        for key in self._moments:
            if key not in tensors:
                raise CheckpointError(f"optimizer state {key}: missing in the checkpoint")
            shape = tuple(self._held(key).shape)
            if tensors.shape(key) != shape:
                shapes = f"{tensors.shape(key)} in the checkpoint, {shape} in the model"
                raise CheckpointError(f"optimizer state {key}: shape {shapes}")
        for key, moment in self._moments.items():
            tensors.fill(key, moment, self.span(key))
        self.updates = updates


def require_same_kind(notes: Mapping[str, Any], kind: str) -> None:
    """Refuse a state that another optimizer than ``kind`` has left.

    Raises:
        CheckpointError: naming both.
    """
    saved = notes.get("type", "AdamW")
    if saved != kind:
        raise CheckpointError(
            f"the checkpoint is of a run with the optimizer {saved}, this run has {kind}",
            hint=f"set optimizer.type to {saved}, or start a new run from these weights (without --resume_training)",
        )
