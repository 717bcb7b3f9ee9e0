"""AdamW over a model's trainable parameters, its state by parameter name, and the gradient norm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from runformer.config.task import OptimizerOptions
from runformer.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""PyTorch's names of Adam's first and second moment; a checkpoint holds ``<moment>.<parameter name>``."""


class NamedAdamW:
    """PyTorch's fused AdamW (arXiv:1711.05101). Decay skips biases and 1-D parameters (norms).

    It calls PyTorch's functional form: the optimizer classes import the compiler when they are made, which would
    add a second to the start of every run, and keep their state by position instead of by name.
    """

    def __init__(self, model: nn.Module, options: OptimizerOptions) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.updates = 0
        self._options = options
        # Made at once: a run too large for the memory then fails in its first step, not in its second.
        self._moments = {
            f"{moment}.{name}": torch.zeros_like(parameter, requires_grad=False)
            for moment in MOMENTS
            for name, parameter in self.parameters.items()
        }

    def gradient_norm(self) -> float:
        """The joint L2 norm of all gradients."""
        return float(nn.utils.get_total_norm(self._gradients()))

    def clip_gradients(self, max_norm: float, norm: float) -> None:
        """Scale all gradients so that their joint norm, now ``norm``, is at most ``max_norm``."""
        if norm > max_norm:
            self.scale_gradients(max_norm / (norm + 1e-6))

    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients."""
        torch._foreach_mul_(self._gradients(), factor)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    @torch.no_grad()
    def update(self, learning_rate: float) -> None:
        """One step of AdamW, from the gradients that the parameters hold."""
        decayed = [name for name, p in self.parameters.items() if p.ndim > 1 and not name.endswith(".bias")]
        others = [name for name in self.parameters if name not in set(decayed)]
        for names, decay in ((decayed, self._options.weight_decay), (others, 0.0)):
            if names:
                self._update(names, learning_rate, decay)
        self.updates += 1

    def _update(self, names: list[str], learning_rate: float, decay: float) -> None:
        parameters = [self.parameters[name] for name in names]
        gradients = [p.grad for p in parameters]
        assert all(gradient is not None for gradient in gradients), "every trainable parameter takes part in the loss"
        # The kernels count up a step of each parameter's own; ours are all the same.
        step = torch.tensor(float(self.updates), device=parameters[0].device)
        adamw(
            parameters,  # type: ignore[arg-type]
            gradients,  # type: ignore[arg-type]
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

    def zero_grad(self) -> None:
        """Drop all gradients, and their memory."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> Mapping[str, Tensor]:
        """The moments, ``<moment>.<parameter name>``; empty before the first update."""
        return self._moments if self.updates else {}

    def load_state(self, moments: Mapping[str, Tensor], updates: int) -> None:
        """Take over moments (copied) and the number of updates that made them.

        Raises:
            CheckpointError: a moment is missing or has another shape than its parameter.
        """
        if updates == 0:
            return  # zeros, as they are
        for key, moment in self._moments.items():
            if key not in moments:
                raise CheckpointError(f"optimizer state {key}: missing in the checkpoint")
            if moments[key].shape != moment.shape:
                shapes = f"{tuple(moments[key].shape)} in the checkpoint, {tuple(moment.shape)} in the model"
                raise CheckpointError(f"optimizer state {key}: shape {shapes}")
        for key, moment in self._moments.items():
            moment.copy_(moments[key])
        self.updates = updates
