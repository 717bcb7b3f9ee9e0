"""Optimizers, schedules and callbacks of plug-ins at work: exact, exactly resumed, and blamed for what they raise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_states import InMemory
from torch import Tensor, nn

from runformer import plugins
from runformer.checkpoint import CheckpointStore, Keep, TrainingState, open_checkpoint
from runformer.config.task import OptimizerOptions, PluginOptimizerOptions, PluginOptions, PluginScheduleOptions
from runformer.errors import CheckpointError, ConfigError, TrainingError
from runformer.plugins.facts import RunFacts, StepFacts
from runformer.train.callbacks import Callbacks
from runformer.train.optimizer import NamedAdamW, NamedOptimizer
from runformer.train.plugin_optimizer import NamedPluginOptimizer
from runformer.train.schedule import make_schedule

pytestmark = pytest.mark.usefixtures("no_plugins")
HERE = "tests/unit/test_plugins_training.py"


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3, bias=False))


def learn(optimizer: NamedOptimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in optimizer.parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.update(1e-2 / (step + 1))


def saved_and_back(optimizer: NamedOptimizer, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and notes as they come back from the disk."""
    common = {"step": optimizer.updates, "optimizer": optimizer.notes()}
    path = CheckpointStore(folder, "x", Keep(3)).save(TrainingState.whole({}, optimizer.state(), common))
    checkpoint = open_checkpoint(path)
    return {name: checkpoint[name] for name in checkpoint}, dict(checkpoint.common["optimizer"])


class Odd(torch.optim.Optimizer):
    """Keeps all that may be kept: tensors of several types, numbers of every type, numbers of a group."""

    def __init__(self, params: Any, lr: float, bend: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "bend": bend, "turns": 0, "largest": -math.inf, "smallest": 1.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            group["turns"] += 1
            group["smallest"] = min(group["smallest"], group["lr"] * 0.1)
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"count": 0, "mean": 0.1, "worst": -math.inf, "on": False, "none": None}
                    state |= {"m": torch.zeros_like(parameter, dtype=torch.float64), "n": torch.tensor(0)}
                    state |= {"step": torch.tensor(0.0), "big": torch.zeros(3, 2, dtype=torch.bfloat16)}
                gradient = parameter.grad
                state["count"] += 1
                state["mean"] += float(gradient.mean()) / 3
                state["on"] = not state["on"]
                state["step"] += 1
                state["n"] += 2
                state["big"] += 0.1
                state["m"].mul_(0.9).add_(gradient)
                wanted = state["m"] * group["lr"] * (state["on"] + state["mean"] + 1 / state["count"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(wanted.to(parameter.dtype) * group["bend"] * group["smallest"] / group["turns"])


def make_odd(model: nn.Module) -> NamedPluginOptimizer:
    return NamedPluginOptimizer(model, PluginOptimizerOptions("Odd", {"bend": 2.0}, 0.1), 1e-2)


def test_state_of_every_sort_survives_the_disk_bit_for_bit(tmp_path: Path) -> None:
    plugins.optimizer("Odd")(Odd)
    whole, first, second = make_model(), make_model(), make_model()
    learn(make_odd(whole), range(6))
    early, late = make_odd(first), make_odd(second)
    learn(early, range(3))
    second.load_state_dict(first.state_dict())
    tensors, notes = saved_and_back(early, tmp_path)
    assert "m.1.weight" in tensors
    assert notes["groups"][0] == {"turns": 3, "smallest": pytest.approx(1e-3 / 3)}  # what has changed, no more
    late.load_state(InMemory(tensors), 3, notes)
    assert late.updates == 3
    assert late.notes() == early.notes()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    learn(late, range(3, 6))
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name]), "taken over as copies"


def test_pytorchs_adamw_as_a_plugin_is_ours(tmp_path: Path) -> None:
    plugins.optimizer("TorchAdamW")(torch.optim.AdamW)
    ours, theirs, resumed = make_model(), make_model(), make_model()
    arguments = {"betas": (0.9, 0.95), "eps": 1e-8, "fused": True}
    options = PluginOptimizerOptions("TorchAdamW", arguments, 0.1)
    learn(NamedAdamW(ours, OptimizerOptions((0.9, 0.95), 1e-8, 0.1)), range(5))
    plugin = NamedPluginOptimizer(theirs, options, 0.0)
    learn(plugin, range(2))
    resumed.load_state_dict(theirs.state_dict())
    again = NamedPluginOptimizer(resumed, options, 0.0)
    tensors, notes = saved_and_back(plugin, tmp_path)
    again.load_state(InMemory(tensors), 2, notes)
    learn(again, range(2, 5))
    for one, other in zip(ours.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_groups_are_decayed_by_the_runs_rule_and_carry_names() -> None:
    seen: list[dict[str, Any]] = []

    @plugins.optimizer("Looking")
    def looking(params: Any, lr: float) -> torch.optim.Optimizer:
        seen.extend(params)
        return torch.optim.SGD(params, lr)

    NamedPluginOptimizer(make_model(), PluginOptimizerOptions("Looking", {}, 0.3), 0.5)
    assert [(group["names"], group["weight_decay"]) for group in seen] == [
        (["0.weight", "1.weight", "3.weight"], 0.3),
        (["1.bias", "2.weight", "2.bias"], 0.0),
    ]


def test_an_optimizer_without_state_is_resumed_too() -> None:
    plugins.optimizer("Plain")(torch.optim.SGD)
    optimizer = NamedPluginOptimizer(make_model(), PluginOptimizerOptions("Plain", {}), 0.1)
    learn(optimizer, range(2))
    optimizer.load_state(InMemory(optimizer.state()), 2, json.loads(json.dumps(optimizer.notes())))
    assert optimizer.updates == 2


def test_a_state_of_another_optimizer_or_model_is_refused() -> None:
    plugins.optimizer("Odd")(Odd)
    odd = make_odd(make_model())
    learn(odd, range(1))
    adamw = NamedAdamW(make_model(), OptimizerOptions())
    with pytest.raises(CheckpointError, match="a run with the optimizer Odd, this run has AdamW"):
        adamw.load_state(InMemory(odd.state()), 1, odd.notes())
    with pytest.raises(CheckpointError, match="a run with the optimizer AdamW, this run has Odd"):
        odd.load_state(InMemory(adamw.state()), 1, adamw.notes())
    numbers = {
        key: {n: v for n, v in values.items() if n != "1.bias"} for key, values in odd.notes()["numbers"].items()
    }
    tensors = {name: tensor for name, tensor in odd.state().items() if not name.endswith("1.bias")}
    with pytest.raises(CheckpointError, match=r"optimizer state of 1.bias: missing"):
        odd.load_state(InMemory(tensors), 1, {**odd.notes(), "numbers": numbers})
    with pytest.raises(CheckpointError, match="1 parameter groups in the checkpoint, 2 in the run"):
        odd.load_state(InMemory(odd.state()), 1, {**odd.notes(), "groups": [{}]})


def failing(*_: Any, **__: Any) -> Any:
    raise KeyError("lost")


class Hoarder(torch.optim.SGD):
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.state[self.param_groups[0]["params"][0]]["seen"] = []


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        (failing, ConfigError, "the optimizer X raised KeyError: 'lost'"),
        (lambda *_: 3, ConfigError, "the optimizer X gave an object of type int, not a torch.optim.Optimizer"),
        (
            lambda params, _: torch.optim.SGD(params, lr=-1),
            ConfigError,
            "Invalid learning rate: -1 (says the optimizer",
        ),
        (Hoarder, TrainingError, "the optimizer X keeps state['seen'] of 0.weight, of type list"),
    ],
)
def test_optimizers_that_fail(factory: Callable[..., Any], error: type[Exception], message: str) -> None:
    plugins.optimizer("X")(factory)
    with pytest.raises(error) as caught:
        learn(NamedPluginOptimizer(make_model(), PluginOptimizerOptions("X", {}), 0.1), range(1))
    assert message in str(caught.value)
    assert HERE in str(caught.value)


def test_memory_that_runs_out_is_nobodys_fault() -> None:
    def hungry(*_: Any) -> Any:
        raise torch.OutOfMemoryError("4 GiB")

    plugins.optimizer("X")(hungry)
    with pytest.raises(torch.OutOfMemoryError):
        NamedPluginOptimizer(make_model(), PluginOptimizerOptions("X", {}), 0.1)


# --- Schedules ----------------------------------------------------------------------------------------------------


def test_a_schedule_gets_steps_and_gives_rates() -> None:
    plugins.schedule("X")(lambda total, epoch, scale: lambda step: scale * (total - step) / epoch)
    schedule = make_schedule(PluginScheduleOptions("X", {"scale": 2}), steps_per_epoch=5, epochs=3)
    assert [schedule(step) for step in (0, 10, 15)] == [6.0, 2.0, 0.0]
    longer = make_schedule(PluginScheduleOptions("X", {"scale": 2}, 20), steps_per_epoch=5, epochs=3)
    assert longer(0) == 8.0


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        (failing, ConfigError, "lr_schedule: "),
        (lambda *_: 0.1, ConfigError, "gave an object of type float, not a function from a step to its learning rate"),
        (lambda *_: failing, TrainingError, "optimizer step 7: "),
        (lambda *_: lambda step: -step, TrainingError, "gives the learning rate -7.0 for optimizer step 7"),
        (lambda *_: lambda _: math.nan, TrainingError, "gives the learning rate nan for optimizer step 7"),
        (lambda *_: lambda _: None, TrainingError, "raised TypeError"),
    ],
)
def test_schedules_that_fail(factory: Callable[..., Any], error: type[Exception], message: str) -> None:
    plugins.schedule("X")(factory)
    with pytest.raises(error) as caught:
        make_schedule(PluginScheduleOptions("X", {}), steps_per_epoch=5, epochs=3)(7)
    assert message in str(caught.value)
    assert "the schedule X" in str(caught.value)


# --- Callbacks ----------------------------------------------------------------------------------------------------

RUN = RunFacts(Path("output"), 1, 10, 10, 0, 2, 100)
STEP = StepFacts(3, 1, 10, 2.5, None, 0.1, 32, 0.5, overflow=False)


def callbacks(*kinds: str) -> Callbacks:
    return Callbacks([PluginOptions(kind, {}) for kind in kinds])


def test_all_callbacks_are_called_in_order_also_after_one_that_stops(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []

    @plugins.callback("First")
    class First:
        def on_train_begin(self, facts: RunFacts) -> None:
            heard.append(("begin", facts))

        def on_step_end(self, facts: StepFacts) -> bool:
            heard.append(("first", facts))
            return plugins.STOP

    @plugins.callback("Second")
    class Second:
        def on_step_end(self, facts: StepFacts) -> None:
            heard.append(("second", facts))

        def on_train_end(self, facts: StepFacts) -> None:
            heard.append(("end", facts))

    both = callbacks("First", "Second")
    both.on_train_begin(RUN)
    with caplog.at_level("INFO"):
        assert both.on_step_end(STEP)
    both.on_train_end(STEP)
    assert heard == [("begin", RUN), ("first", STEP), ("second", STEP), ("end", STEP)]
    assert "the callback First stops the run after step 3 of 10" in caplog.text
    assert not callbacks("Second").on_step_end(STEP)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"on_step_end": failing}, "step 3: "),
        ({"on_step_end": failing}, "the callback X raised KeyError: 'lost'"),
        ({"on_step_end": lambda _, facts: facts.loss}, "returned 2.5 from on_step_end"),
    ],
)
def test_callbacks_that_fail(body: dict[str, Any], message: str) -> None:
    plugins.callback("X")(type("X", (), body))
    with pytest.raises(TrainingError) as caught:
        callbacks("X").on_step_end(STEP)
    assert message in str(caught.value)
    assert HERE in str(caught.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (failing, "the callback X raised KeyError"),
        (
            type("X", (), {"on_step_ends": None}),
            "a method on_step_ends, which is never called; did you mean 'on_step_e",
        ),
        (type("X", (), {"step": None}), "has none of the methods on_train_begin, on_step_end, on_train_end"),
    ],
)
def test_callbacks_that_cannot_be_made(target: Any, message: str) -> None:
    plugins.callback("X")(target)
    with pytest.raises(ConfigError) as caught:
        callbacks("X")
    assert message in str(caught.value)


def test_a_name_of_a_task_from_elsewhere_is_explained() -> None:
    with pytest.raises(ConfigError, match="there is no callback 'X' here"):
        callbacks("X")
