"""Sections whose type names a plug-in: keys against the signature, what becomes of them, and names nobody knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_tasks import DATA, MINIMAL, MODEL, load

from runformer import plugins
from runformer.config import ModelOptions, Task
from runformer.config.task import ModelTask, PluginOptimizerOptions, PluginOptions, PluginScheduleOptions
from runformer.errors import ConfigError
from runformer.models.families import resolve_options
from runformer.plugins.registry import Registry

LINE = MINIMAL.count("\n") + 1


@pytest.fixture(autouse=True)
def _registered(no_plugins: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert no_plugins.of_kind("optimizer") == {}
    monkeypatch.chdir(tmp_path)
    plugins.optimizer("Momentum")(momentum)
    plugins.schedule("HalfLR")(half)
    plugins.callback("Watch")(Watch)
    plugins.data_handler("Mask")(Mask)
    plugins.data_handler("Anything")(dict)


def momentum(params: Any, lr: float, momentum: float, *, nesterov: bool = False, weight_decay: float = 0.0) -> None:
    """Called nowhere here: only its signature counts."""


def half(total: int, epoch: int, rate: float = 1.0, **others: Any) -> None:
    """Takes any key."""


class Watch:
    """Has no keys at all."""


class Mask:
    """Has one key that is needed."""

    def __init__(self, token: int) -> None: ...


def task_of(extra: str, *arguments: str) -> Task:
    return load(Path.cwd(), MINIMAL + extra, *arguments)


def error_of(extra: str, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        task_of(extra, *arguments)
    return str(caught.value)


def test_keys_become_arguments_and_the_runs_own_stay_with_the_run() -> None:
    task = task_of(
        "optimizer: {type: Momentum, momentum: 0.9, nesterov: True, weight_decay: 0.1, learning_rate: 3}\n"
        "callbacks: [{type: MFLossMonitor}, {type: Watch}]\n",
        "--train_dataset.data_loader.handler",
        "[{type: Mask, token: 3}, {type: Anything, a: {b: [1, 2]}}]",
    ).train
    assert task is not None
    assert task.optimizer == PluginOptimizerOptions("Momentum", {"momentum": 0.9, "nesterov": True}, 0.1)
    assert task.callbacks == (PluginOptions("Watch", {}),)
    assert task.data.handlers == (
        PluginOptions("Mask", {"token": 3}),
        PluginOptions("Anything", {"a": {"b": [1, 2]}}),
    )
    assert task.schedule.parameters["learning_rate"] == 3


@pytest.mark.parametrize(("written", "steps"), [("", None), (", total_steps: -1", None), (", total_steps: 20", 20)])
def test_a_schedule_has_the_runs_steps_unless_the_section_says_otherwise(written: str, steps: int | None) -> None:
    train = task_of(f"lr_schedule: {{type: HalfLR, rate: 2, further: 1, left_out: null{written}}}\n").train
    assert train is not None
    assert train.schedule == PluginScheduleOptions("HalfLR", {"rate": 2, "further": 1}, steps)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            "optimizer: {type: Momentum, momentum: 1, nesterv: True}",
            f"task.yaml:{LINE}:42: optimizer.nesterv is not a key of the optimizer Momentum (",
        ),
        ("optimizer: {type: Momentum, momentum: 1, nesterv: True}", "): did you mean 'nesterov'?"),
        ("optimizer: {type: Momentum}", f"task.yaml:{LINE}:12: optimizer lacks 'momentum', which the optimizer Mom"),
        ("optimizer: {type: Momentum, momentum: null}", "optimizer lacks 'momentum'"),
        ("optimizer: {type: Momentum, momentum: 1, lr: 1}", "optimizer.lr is not a key of the optimizer Momentum"),
        (
            "optimizer: {type: Momentum, momentum: 1, weight_decay: -1}",
            "weight_decay must be a number, at least 0, not -1",
        ),
        ("optimizer: {type: Momentum, momentum: 1, weight_decay: x}", "must be a number, at least 0, not 'x'"),
        (
            f"optimizer: {{type: Momentum, momentum: 1, weight_decay: {10**400}}}",
            "must be a number, at least 0, not 1000",
        ),
        ("lr_schedule: {type: HalfLR, total_steps: 2.5}", "lr_schedule.total_steps must be a whole number of steps"),
        ("lr_schedule: {type: HalfLR, total_steps: 0}", "lr_schedule.total_steps must be a whole number of steps"),
        ("callbacks: [{type: Watch, x: 1}]", f"task.yaml:{LINE}:27: callbacks[0].x is not a key of the callback Watch"),
    ],
)
def test_wrong_keys(extra: str, message: str) -> None:
    assert message in error_of(f"{extra}\n")


def test_all_wrong_keys_are_said_at_once_also_those_of_the_command_line() -> None:
    message = error_of("optimizer: {type: Momentum, a: 1}\n", "--optimizer.bb", "2", "--seed", "-1")
    assert "4 problems" in message
    assert "command line: --optimizer.bb: optimizer.bb is not a key of the optimizer Momentum" in message


def test_a_handler_is_checked_where_its_dataset_is_an_alias() -> None:
    data = DATA.replace("train_dataset:", "train_dataset: &data") + "    handler: [{type: Mask, tokn: 1}]\n"
    task = "train_dataset_task: {type: CausalLanguageModelDataset, dataset_config: *data}\n"
    with pytest.raises(ConfigError) as caught:
        load(Path.cwd(), f"run_mode: train\n{data}{task}{MODEL}")
    assert str(caught.value).splitlines()[0] == "task.yaml: 2 problems"
    assert "handler[0].tokn is not a key of the data handler Mask" in str(caught.value)
    assert "handler[0] lacks 'token'" in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("optimizer: {type: Momentm}", "optimizer.type is 'Momentm'; did you mean 'Momentum'? Supported: AdamW, Fus"),
        ("lr_schedule: {type: HalfLr}", "lr_schedule.type is 'HalfLr'; did you mean 'HalfLR'? Supported: ConstantWa"),
        ("callbacks: [{type: Wacth}]", "callbacks[0].type is 'Wacth', which is not known: did you mean 'Watch'?"),
        ("callbacks: [{type: Zzz}]", "'Zzz', which is not known; plug-ins are found in the folder of --register_path"),
        ("optimizer: {type: Zzz}", "AdamWeightDecay, Momentum, and plug-ins in the folder of --register_p"),
    ],
)
def test_unknown_types(extra: str, message: str) -> None:
    assert message in error_of(f"{extra}\n")


def test_unknown_handlers_matter_to_a_dataset_that_would_use_them() -> None:
    handler = ("--train_dataset.data_loader.handler", "[{type: Maks, x: 1}]")
    assert "handler[0].type is 'Maks'; did you mean 'Mask'? Supported: Mask, Anything, and plug-ins" in error_of(
        "", *handler
    )
    table = error_of("", *handler, "--train_dataset.data_loader.type", "HFDataLoader")
    assert "handler[0].type is 'Maks'; did you mean 'Mask'? Supported: AlpacaInstructDataHandler, " in table


def test_a_plan_says_whose_memory_it_counts() -> None:
    task = task_of("optimizer: {type: Momentum, momentum: 1}\n", "--dry_run", "True")
    assert "optimizer Momentum: its memory is planned as if it were AdamW's" in task.notices


# --- Families -----------------------------------------------------------------------------------------------------

HF = {
    "model_type": "biased",
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def biased(config: Any) -> dict[str, Any]:
    if config.get("twisted"):
        raise ValueError("twisted attention is not supported")
    return {"mlp_bias": config["biases"] > 1}


def register_family() -> None:
    plugins.model_family("biased", names=("BiasedConfig", "BiasedLM"), options={"qkv_bias": True}, from_config=biased)


def folder_with(config: dict[str, Any]) -> ModelTask:
    Path("hf").mkdir(exist_ok=True)
    Path("hf/config.json").write_text(json.dumps(config))
    return ModelTask("x", None, Path("hf"))


@pytest.mark.parametrize("name", ["type: BiasedConfig", "model_type: biased", "architectures: [BiasedLM]"])
def test_a_family_is_known_by_each_of_its_names(name: str) -> None:
    text = f"run_mode: train\n{DATA}{MODEL}".replace("type: LlamaConfig", name)
    with pytest.raises(ConfigError, match=r"the model family of .* is not supported"):
        load(Path.cwd(), text)
    register_family()
    options = load(Path.cwd(), text).model.options
    assert options is not None
    assert (options.qkv_bias, options.mlp_bias, options.num_kv_heads) == (True, False, 4)
    assert isinstance(options, ModelOptions)


def test_a_family_reads_a_hugging_face_folder() -> None:
    model = folder_with(HF | {"biases": 2})
    with pytest.raises(ConfigError, match="model_type 'biased' is not supported"):
        resolve_options(model)
    register_family()
    options = resolve_options(model)
    assert (options.qkv_bias, options.mlp_bias, options.hidden_size) == (True, True, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"biases": 1, "twisted": 1}, "hf/config.json: twisted attention is not supported (says the model family bia"),
        ({}, "the model family biased raised KeyError: 'biases'"),
        ({"model_type": "biasd"}, "model_type 'biasd' is not supported (did you mean 'biased'?)"),
    ],
)
def test_a_folder_that_the_family_cannot_read(changes: dict[str, Any], message: str) -> None:
    register_family()
    with pytest.raises(ConfigError) as caught:
        resolve_options(folder_with(HF | changes))
    assert message in str(caught.value)


def test_a_field_that_no_model_has_is_refused() -> None:
    plugins.model_family("biased", from_config=lambda _: {"mlp_bia": True})
    with pytest.raises(
        ConfigError, match=r"sets 'mlp_bia', which ModelOptions does not have; did you mean 'mlp_bias'\?"
    ):
        resolve_options(folder_with(HF))


def test_a_family_without_a_reader_has_the_common_options() -> None:
    plugins.model_family("biased", options={"qk_norm": True})
    assert resolve_options(folder_with(HF)).qk_norm
