"""The callbacks of a run that plug-ins made."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from typing import Any

from runformer.config.task import PluginOptions
from runformer.errors import ConfigError, TrainingError
from runformer.observe import StepRow
from runformer.plugins.facts import HOOKS, STOP, RunFacts, StepFacts
from runformer.plugins.failures import blaming
from runformer.plugins.registry import Registration, find

logger = logging.getLogger(__name__)


def step_facts(row: StepRow, *, total_steps: int, overflow: bool) -> StepFacts:
    """What callbacks are told of a step."""
    return StepFacts(
        step=row.step,
        epoch=row.epoch,
        total_steps=total_steps,
        loss=row.loss,
        grad_norm=row.grad_norm,
        lr=row.lr,
        tokens=row.tokens,
        seconds=row.step_seconds,
        overflow=overflow,
    )


class Callbacks:
    """All callbacks of a run, called in the order of the task file.

    Every method raises TrainingError, naming the callback, where one fails.

    Raises:
        ConfigError: one cannot be made, or has no method that is ever called.
    """

    def __init__(self, options: Sequence[PluginOptions]) -> None:
        self._callbacks = [_make(item) for item in options]

    def on_train_begin(self, facts: RunFacts) -> None:
        """Before the first step."""
        for plugin, callback in self._callbacks:
            _call(plugin, callback, "on_train_begin", facts)

    def on_step_end(self, facts: StepFacts) -> bool:
        """After a step; whether one of them stops the run."""
        stopping = False
        for plugin, callback in self._callbacks:
            answer = _call(plugin, callback, "on_step_end", facts)
            if answer is STOP:
                logger.info("the %s stops the run after step %d of %d", plugin, facts.step, facts.total_steps)
                stopping = True
            elif answer not in (None, False):
                text = f"step {facts.step}: the {plugin} ({plugin.place}) returned {answer!r} from on_step_end"
                raise TrainingError(text, hint="it returns plugins.STOP to end the run, else nothing")
        return stopping

    def on_train_end(self, facts: StepFacts) -> None:
        """After the last step, also where a callback stopped the run; not after an error."""
        for plugin, callback in self._callbacks:
            _call(plugin, callback, "on_train_end", facts)


def _make(options: PluginOptions) -> tuple[Registration, Any]:
    plugin = find("callback", options.kind)
    with blaming(plugin, ConfigError):
        callback = plugin.target(**options.parameters)
    hooks = [name for name in dir(callback) if name.startswith("on_")]
    for name in hooks:
        if name not in HOOKS and (near := difflib.get_close_matches(name, HOOKS, n=1)):
            text = f"{plugin.place}: the {plugin} has a method {name}, which is never called"
            raise ConfigError(f"{text}; did you mean {near[0]!r}?")
    if not set(hooks) & set(HOOKS):
        raise ConfigError(f"{plugin.place}: the {plugin} has none of the methods {', '.join(HOOKS)}")
    return plugin, callback


def _call(plugin: Registration, callback: Any, hook: str, facts: RunFacts | StepFacts) -> Any:
    method = getattr(callback, hook, None)
    if method is None:
        return None
    where = f"step {facts.step}" if isinstance(facts, StepFacts) else ""
    with blaming(plugin, TrainingError, where):
        return method(facts)
