"""The worked plug-in: Mistral against transformers, Lion against its formula, and its recipe."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from runformer.config import load_task
from runformer.config.task import ModelOptions, ModelTask, PluginOptimizerOptions, Precision
from runformer.errors import ConfigError
from runformer.models.build import build_model
from runformer.models.decoder import CausalLM
from runformer.models.families import options_from_config, resolve_options
from runformer.plugins.facts import StepFacts
from runformer.plugins.load import load_plugins
from runformer.train.plugin_optimizer import NamedPluginOptimizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("no_plugins")

MISTRAL_7B = {
    "model_type": "mistral",
    "vocab_size": 32768,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


@pytest.fixture(autouse=True)
def training(no_plugins: object, repository: Path) -> ModuleType:
    """The plug-ins of research/mistral, loaded; the module of all but the family."""
    assert no_plugins is not None
    files = load_plugins(repository / "research/mistral", (), trusted=True)
    assert [file.name for file in files] == ["mistral.py", "mistral_training.py"]
    return sys.modules["mistral_training"]


@pytest.mark.parametrize("changes", [{}, {"head_dim": 16}, {"num_key_value_heads": 6}, {"sliding_window": 256}])
def test_logits_equal_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"vocab_size": 211, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": None}
    torch.manual_seed(0)
    config = transformers.MistralConfig(**(sizes | {"sliding_window": None, "initializer_range": 0.3} | changes))
    theirs = transformers.MistralForCausalLM._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path)
    ours = build_model(resolve_options(ModelTask("x", None, tmp_path)), Precision(), torch.device("cpu"))
    ours.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    tokens = torch.randint(211, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, actual = theirs(tokens).logits, ours.logits(ours(tokens))
    assert (actual - expected).abs().max() <= min(1e-4, 1e-5 * float(expected.abs().max()))


def test_the_recipe_is_the_model_of_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.mindrecord").touch()
    recipe = ["--register_path", "research/mistral", "--config", "finetune_mistral_7b_v0_3.yaml"]
    trust = ["--trust_remote_code", "True"]  # a checkout may have any rights
    task = load_task([*recipe, *trust, "--train_dataset_dir", "rows.mindrecord"])
    options = options_from_config(MISTRAL_7B, "config.json")
    assert task.model.options == options
    assert options == dataclasses.replace(options, num_kv_heads=8, qkv_bias=False, rope_theta=1e6)
    with torch.device("meta"):
        model = CausalLM(options, Precision())
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_248_023_552
    assert task.train is not None
    parts = (task.train.optimizer, task.train.schedule, *task.train.callbacks, *task.train.data.handlers)
    assert [part.kind for part in parts if hasattr(part, "kind")] == [
        "Lion",
        "InverseSquareRootLR",
        "StopWhenLossBelow",
        "MaskPrompt",
    ]


@pytest.mark.parametrize(("written", "window"), [(4096, 4096), (..., 4096), (9, 9)])  # ...: left out
def test_a_sliding_window_is_refused(written: Any, window: int) -> None:
    changes = {"sliding_window": written}
    config = {key: value for key, value in (MISTRAL_7B | changes).items() if value is not ...}
    with pytest.raises(ConfigError) as caught:
        options_from_config(config, "hf/config.json")
    assert str(caught.value).startswith(
        f"hf/config.json: sliding_window {window} is less than max_position_embeddings 32768, but only full attention"
    )


def test_what_a_configuration_leaves_out_is_what_transformers_takes() -> None:
    small = {key: MISTRAL_7B[key] for key in ("model_type", "vocab_size", "hidden_size", "intermediate_size")}
    small |= {"num_hidden_layers": 1, "num_attention_heads": 32, "sliding_window": None}
    options = options_from_config(small, "config.json")
    theirs = transformers.MistralConfig()
    assert (options.num_kv_heads, options.max_positions) == (theirs.num_key_value_heads, theirs.max_position_embeddings)
    assert isinstance(options, ModelOptions)


def test_lion_is_its_formula_in_double_precision() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.LayerNorm(4)).double()
    optimizer = NamedPluginOptimizer(model, PluginOptimizerOptions("Lion", {"betas": [0.9, 0.99]}, 0.3), 0.0)
    theta = {name: p.detach().numpy().copy() for name, p in optimizer.parameters.items()}
    momentum = {name: np.zeros_like(value) for name, value in theta.items()}
    for step in range(20):
        rate = 1e-2 / (1 + step)
        for name, parameter in optimizer.parameters.items():
            parameter.grad = torch.randn_like(parameter)
            g, m = parameter.grad.numpy(), momentum[name]
            decay = 0.3 if name == "0.weight" else 0.0
            theta[name] = theta[name] - rate * (np.sign(0.9 * m + 0.1 * g) + decay * theta[name])
            momentum[name] = 0.99 * m + 0.01 * g
        optimizer.update(rate)
    for name, parameter in optimizer.parameters.items():
        np.testing.assert_allclose(parameter.detach().numpy(), theta[name], rtol=0, atol=1e-14)
        np.testing.assert_allclose(optimizer.state()[f"momentum.{name}"].numpy(), momentum[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("betas", [[0.9], [0.9, 1.0], [-0.1, 0.9]])
def test_lion_refuses_wrong_betas(betas: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"optimizer.betas must be two numbers in \[0, 1\)"):
        NamedPluginOptimizer(torch.nn.Linear(2, 2), PluginOptimizerOptions("Lion", {"betas": betas}), 0.1)


def test_the_schedule_rises_and_falls_with_the_root(training: ModuleType) -> None:
    curve = training.inverse_square_root(1000, 10, learning_rate=2.0, warmup_steps=4)
    assert [curve(step) for step in (0, 1, 3, 15, 399)] == [0.5, 1.0, 2.0, 1.0, 0.2]
    assert training.inverse_square_root(1000, 10, learning_rate=2.0)(0) == 2.0


def test_the_callback_looks_at_the_mean_of_its_steps(training: ModuleType) -> None:
    callback = training.StopWhenLossBelow(loss=1.0, steps=2)
    losses = [0.5, 3.0, 1.2, 0.9, 0.9]
    facts = [StepFacts(1, 1, 9, loss, None, 0.1, 8, 0.1, overflow=False) for loss in losses]
    assert [callback.on_step_end(fact) for fact in facts] == [None, None, None, None, True]


def test_the_handler_masks_up_to_the_last_end_of_a_prompt(training: ModuleType) -> None:
    mask = training.MaskPrompt(end=4)
    tokens = np.array([1, 3, 9, 4, 8, 3, 9, 4, 7, 2], np.int32)
    assert mask({"input_ids": tokens})["labels"].tolist() == [-100] * 8 + [7, 2]
    labels = np.where(tokens == 7, -100, tokens)
    assert mask({"input_ids": tokens, "labels": labels})["labels"].tolist() == [-100] * 9 + [2]
    assert mask({"input_ids": tokens[:3]})["labels"].tolist() == [1, 3, 9]
    assert tokens.tolist() == [1, 3, 9, 4, 8, 3, 9, 4, 7, 2]
