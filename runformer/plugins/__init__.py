"""What a plug-in imports: it registers its parts here, and task files name them by ``type``.

A plug-in is a Python file in the folder of ``--register_path``::

    from runformer import plugins

    @plugins.schedule("HalfLR")
    def half(total_steps, steps_per_epoch, learning_rate):
        return lambda step: learning_rate if step < total_steps / 2 else learning_rate / 2

Importing this module loads neither torch nor any other room but ``errors``. Every function here raises ConfigError
where other code has registered the name already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from runformer.errors import ConfigError
from runformer.plugins.facts import STOP, RunFacts, StepFacts
from runformer.plugins.registry import REGISTRY, WORDS, Family, Kind, Registration, shown

__all__ = ["STOP", "RunFacts", "StepFacts", "callback", "data_handler", "model_family", "optimizer", "schedule"]

T = TypeVar("T", bound=Callable[..., Any])


def optimizer(name: str) -> Callable[[T], T]:
    """Register an optimizer for ``optimizer.type``.

    It is called as ``f(params, lr, **keys)`` and gives a ``torch.optim.Optimizer``. ``params`` are one or two groups
    ``{"params": tensors, "names": their names, "weight_decay": number}``, matrices and the rest; ``lr`` is the rate
    of the run's first step, and before each step every group's ``lr`` is set. ``keys`` are the section's, without
    ``weight_decay`` and ``learning_rate``.
    """
    return _registering("optimizer", name, sys._getframe(1))


def schedule(name: str) -> Callable[[T], T]:
    """Register a learning-rate curve for ``lr_schedule.type``.

    It is called as ``f(total_steps, steps_per_epoch, **keys)``, both counts of optimizer steps, and gives a function
    from the number of optimizer steps done so far (0 for the first) to that step's learning rate, 0 or more.
    """
    return _registering("schedule", name, sys._getframe(1))


def callback(name: str) -> Callable[[T], T]:
    """Register a callback for an item of ``callbacks``.

    Called with the item's keys it gives an object with some of the methods ``on_train_begin(RunFacts)``,
    ``on_step_end(StepFacts)``, which may return ``STOP``, and ``on_train_end(StepFacts)``.
    """
    return _registering("callback", name, sys._getframe(1))


def data_handler(name: str) -> Callable[[T], T]:
    """Register a data handler for an item of ``data_loader.handler``.

    Called with the item's keys it gives a function from one record, ``{column: 1-D int32 or int64 array}``, to another
    such. It must depend on nothing but the record, or a resumed run would see other data.
    """
    return _registering("data_handler", name, sys._getframe(1))


def model_family(
    name: str,
    *,
    names: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    from_config: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> None:
    """Register a family of models that the built-in decoder can compute.

    Args:
        name: Hugging Face's ``model_type``.
        names: other names of it in task files: of the configuration class, of the model class.
        options: fields of ``runformer.config.ModelOptions`` that the architecture fixes.
        from_config: gives further fields for a Hugging Face ``config.json``; raises ValueError with a reason
            for one that asks for what the decoder does not have.
    """
    frame = sys._getframe(1)
    family = Family(name, dict(options or {}), from_config)
    for known in dict.fromkeys((name, *names)):
        _register("model_family", known, family, frame.f_code.co_filename, frame.f_lineno)


def _registering(kind: Kind, name: str, frame: FrameType) -> Callable[[T], T]:
    file, line = frame.f_code.co_filename, frame.f_lineno
    if not isinstance(name, str):
        raise ConfigError(f'{shown(Path(file))}:{line}: the {WORDS[kind]} needs a name: @plugins.{kind}("Name")')

    def register(target: T) -> T:
        _register(kind, name, target, file, line)
        return target

    return register


def _register(kind: Kind, name: str, target: Any, file: str, line: int) -> None:
    REGISTRY.add(Registration(kind, name, target, Path(file), line))
