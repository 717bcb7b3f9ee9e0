"""An optimizer of a plug-in, with its state by parameter name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from runformer.checkpoint.held import SavedState
from runformer.config.task import PluginOptimizerOptions
from runformer.errors import CheckpointError, ConfigError, TrainingError
from runformer.plugins.failures import blaming
from runformer.plugins.registry import find
from runformer.train.optimizer import HasParameters, NamedOptimizer, require_same_kind

_PLAIN = (bool, int, float, type(None))
_RUN_SETS = ("params", "names", "lr")  # of a group; all else is the optimizer's


class NamedPluginOptimizer(NamedOptimizer):
    """Any ``torch.optim.Optimizer`` that a plug-in makes.

    Saved are the tensors and plain numbers in ``optimizer.state[parameter]``, and those plain numbers of
    ``optimizer.param_groups`` that the optimizer has changed since it was made.

    Args:
        model: its trainable parameters are optimized.
        options: the plug-in and its arguments.
        first_rate: the learning rate of the run's first step.

    Raises:
        ConfigError: the plug-in fails, or makes something else.
    """

    def __init__(self, model: HasParameters, options: PluginOptimizerOptions, first_rate: float) -> None:
        super().__init__(model)
        self.plugin = find("optimizer", options.kind)
        groups = [
            {"params": [self.parameters[name] for name in names], "names": names, "weight_decay": decay}
            for names, decay in self.decay_groups(options.weight_decay)
        ]
        with blaming(self.plugin, ConfigError):
            optimizer = self.plugin.target(groups, first_rate, **options.parameters)
        if not isinstance(optimizer, Optimizer):
            text = f"{self.plugin.place}: the {self.plugin} gave an object of type {type(optimizer).__name__}"
            raise ConfigError(f"{text}, not a torch.optim.Optimizer")
        self._optimizer = optimizer
        self._first_groups = self._plain_groups()

    def update(self, learning_rate: float) -> None:
        """One step of the plug-in's optimizer.

        Raises:
            TrainingError: it fails, or keeps a state that no checkpoint can hold.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        with blaming(self.plugin, TrainingError, f"update {self.updates + 1}"):
            self._optimizer.step()
        if self.updates == 0:
            self._check_state()
        self.updates += 1

    def _check_state(self) -> None:
        for name, key, value in self._entries():
            if not isinstance(key, str) or "." in key or not isinstance(value, (Tensor, *_PLAIN)):
                text = f"the {self.plugin} keeps state[{key!r}] of {name}, of type {type(value).__name__}"
                hint = "checkpoints hold tensors and plain numbers, under keys that are words"
                raise TrainingError(f"{self.plugin.place}: {text}", hint=hint)

    def _entries(self) -> Iterator[tuple[str, str, Any]]:
        """All of the state: parameter's name, key, value."""
        for name, parameter in self.parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                yield name, key, value

    def state(self) -> Mapping[str, Tensor]:
        """The state's tensors, ``<key>.<parameter name>``."""
        return {f"{key}.{name}": value for name, key, value in self._entries() if isinstance(value, Tensor)}

    def notes(self) -> Mapping[str, Any]:
        """The optimizer's name, its plain numbers, and which tensors lie on the CPU though their parameter does not."""
        numbers: dict[str, dict[str, Any]] = {}
        on_cpu: set[str] = set()
        for name, key, value in self._entries():
            if not isinstance(value, Tensor):
                numbers.setdefault(key, {})[name] = _to_json(value)
            elif value.device.type == "cpu" != self.parameters[name].device.type:
                on_cpu.add(key)
        return {
            "type": self.plugin.name,
            "numbers": numbers,
            "groups": self._changed_groups(),
            "on_cpu": sorted(on_cpu),
        }

    def _plain_groups(self) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in group.items() if key not in _RUN_SETS and isinstance(value, _PLAIN)}
            for group in self._optimizer.param_groups
        ]

    def _changed_groups(self) -> list[dict[str, Any]]:
        pairs = zip(self._plain_groups(), self._first_groups, strict=True)
        return [
            {key: _to_json(value) for key, value in now.items() if key not in first or value != first[key]}
            for now, first in pairs
        ]

    def load_state(self, tensors: SavedState, updates: int, notes: Mapping[str, Any]) -> None:
        """Take over the state that an optimizer of the same name has left."""
        require_same_kind(notes, self.plugin.name)
        if updates == 0:
            return
        states: dict[str, dict[str, Any]] = {name: {} for name in self.parameters}
        for full_name in tensors:
            key, _, name = full_name.partition(".")
            if name in states:
                device = "cpu" if key in notes["on_cpu"] else self.parameters[name].device
                states[name][key] = tensors[full_name].to(device, copy=True)
        for key, values in notes["numbers"].items():
            for name in values.keys() & states.keys():
                states[name][key] = _from_json(values[name])
        _require_all(states)
        for name, state in states.items():
            self._optimizer.state[self.parameters[name]] = state
        groups = self._optimizer.param_groups
        if len(groups) != len(notes["groups"]):
            text = f"{len(notes['groups'])} parameter groups in the checkpoint, {len(groups)} in the run"
            raise CheckpointError(f"optimizer state of the {self.plugin}: {text}")
        for group, changed in zip(groups, notes["groups"], strict=True):
            group |= {key: _from_json(value) for key, value in changed.items()}
        self.updates = updates


def _require_all(states: Mapping[str, Mapping[str, Any]]) -> None:
    """Either no parameter has a state, as in plain gradient descent, or all have one."""
    missing = [name for name, state in states.items() if not state]
    if missing and len(missing) < len(states):
        raise CheckpointError(f"optimizer state of {missing[0]}: missing in the checkpoint")


def _to_json(value: bool | int | float | None) -> Any:
    """JSON has no infinities: they and NaN become text."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value
