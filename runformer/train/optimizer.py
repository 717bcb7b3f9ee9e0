"""AdamW over a model's trainable parameters, its state by parameter name, and the gradient norm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from runformer.config.task import OptimizerOptions
from runformer.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""PyTorch's names of Adam's first and second moment; a checkpoint holds ``<moment>.<parameter name>``."""


class NamedAdamW:
    """PyTorch's fused AdamW (arXiv:1711.05101). Decay skips biases and 1-D parameters (norms)."""

    def __init__(self, model: nn.Module, options: OptimizerOptions) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        decayed = [p for name, p in self.parameters.items() if p.ndim > 1 and not name.endswith(".bias")]
        others = [p for name, p in self.parameters.items() if p.ndim <= 1 or name.endswith(".bias")]
        groups = [
            {"params": decayed, "weight_decay": options.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        device_type = next(iter(self.parameters.values())).device.type
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            betas=options.betas,
            eps=options.eps,
            fused=device_type in ("cpu", "cuda"),
        )
        self.updates = 0

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

    def update(self, learning_rate: float) -> None:
        """One step of AdamW."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.updates += 1

    def zero_grad(self) -> None:
        """Drop all gradients, and their memory."""
        self._adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """The moments by name; empty before the first update."""
        return {
            f"{moment}.{name}": self._adamw.state[parameter][moment]
            for name, parameter in self.parameters.items()
            for moment in MOMENTS
            if parameter in self._adamw.state
        }

    def load_state(self, moments: Mapping[str, Tensor], updates: int) -> None:
        """Take over moments (copied) and the number of updates that made them.

        Raises:
            CheckpointError: a moment is missing or has another shape than its parameter.
        """
        if updates == 0:
            return  # Adam makes its moments with the first update
        for name, parameter in self.parameters.items():
            # A 0-D float32 counter on the parameter's device is what the fused kernels expect.
            state = {"step": torch.tensor(float(updates), device=parameter.device)}
            for moment in MOMENTS:
                saved = moments.get(f"{moment}.{name}")
                if saved is None or saved.shape != parameter.shape:
                    raise CheckpointError(_mismatch(f"{moment}.{name}", saved, parameter))
                state[moment] = saved.to(device=parameter.device, dtype=parameter.dtype, copy=True)
            self._adamw.state[parameter] = state
        self.updates = updates


def _mismatch(key: str, saved: Tensor | None, parameter: Tensor) -> str:
    if saved is None:
        return f"optimizer state {key}: missing in the checkpoint"
    return f"optimizer state {key}: shape {tuple(saved.shape)} in the checkpoint, {tuple(parameter.shape)} in the model"
