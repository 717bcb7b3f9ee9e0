"""LoRA against PEFT: the same outputs and the same gradients; which layers a pattern picks; initial values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models_parity import make_pair

from runformer.config.task import LoraOptions, ModelOptions, Precision
from runformer.errors import ConfigError
from runformer.models.build import build_model, initialise
from runformer.models.decoder import CausalLM

peft = pytest.importorskip("peft")

OPTIONS = ModelOptions(97, 32, 48, 2, 4, 2, 8, 64)


def build(target_modules: str, rank: int = 4, dropout: float = 0.0) -> CausalLM:
    lora = LoraOptions(rank, 16.0, dropout, target_modules)
    model = build_model(OPTIONS, Precision(), torch.device("cpu"), lora)
    initialise(model, 3)
    return model


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks for it
def test_outputs_and_gradients_equal_peft(tmp_path: Path) -> None:
    theirs, base = make_pair("qwen2", tmp_path)
    config = peft.LoraConfig(r=4, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj", "down_proj"])
    theirs = peft.get_peft_model(theirs, config)
    ours = build_model(base.options, Precision(), torch.device("cpu"), LoraOptions(4, 16.0, 0.0, "wq|wv|w2"))
    adapters = _copy_weights(theirs, base, ours)
    tokens = torch.randint(base.options.vocab_size, (2, 24), generator=torch.Generator().manual_seed(5))
    expected = theirs(tokens).logits
    actual = ours.logits(ours(tokens))
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    expected.square().mean().backward()
    actual.square().mean().backward()
    trained = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    assert set(trained) == set(adapters)
    for name, parameter in trained.items():
        assert parameter.grad is not None
        reference = adapters[name].grad
        assert (parameter.grad - reference).norm() <= 2e-5 * reference.norm(), name


def _copy_weights(theirs: Any, base: CausalLM, ours: CausalLM) -> dict[str, Any]:
    """PEFT's random adapters (B too, or outputs would be the base's) into ours; by our names."""
    adapters = {}
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
            adapters[name.removeprefix("base_model.model.").replace(".default", "")] = parameter
    ours.load_state_dict(base.state_dict() | {name: p.detach() for name, p in adapters.items()}, strict=True)
    return adapters


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        (".*wq|.*wk|.*wv|.*wo", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("wq", {"q_proj"}),
        (".*attention.*", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (".*w1|.*w2|.*w3", {"gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_patterns_speak_mindformers_names(pattern: str, layers: set[str]) -> None:
    model = build(pattern)
    adapted = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in adapted} == layers
    assert len(adapted) == OPTIONS.num_layers * len(layers)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("nothing", "matches no layer"), ("*", "no regular expression")],
)
def test_useless_patterns_are_refused(pattern: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        build(pattern)


def test_a_new_adapter_changes_nothing_until_it_learns() -> None:
    adapted, tokens = build(".*wq"), torch.arange(10)[None]
    plain = build_model(OPTIONS, Precision(), torch.device("cpu"))
    initialise(plain, 3)
    assert torch.equal(adapted(tokens), plain(tokens))


def test_dropout_is_on_in_training_only() -> None:
    model, tokens = build(".*wq", dropout=0.5), torch.arange(10)[None]
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    assert torch.equal(model.eval()(tokens), model(tokens))
    learning = model.train()(tokens)
    assert not torch.equal(learning, model.eval()(tokens))
    assert torch.equal(learning, model.train()(tokens)), "the same place in a run"
    model.place.key = torch.tensor(7)
    assert not torch.equal(learning, model(tokens)), "another one"


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    one, two, other = build("wq"), build(".*wq|.*wo"), build_model(OPTIONS, Precision(), torch.device("cpu"))
    initialise(other, 4)
    first, second = dict(one.named_parameters()), dict(two.named_parameters())
    assert all(torch.equal(parameter, second[name]) for name, parameter in first.items())
    weights = dict(other.named_parameters())
    assert not torch.equal(weights["lm_head.weight"], first["lm_head.weight"])
    assert abs(first["lm_head.weight"].std().item() - OPTIONS.initializer_range) < 0.002
    assert torch.all(first["model.norm.weight"] == 1)


def test_adapters_stay_float32_in_a_bfloat16_model() -> None:
    precision = Precision(parameters="bfloat16", compute="bfloat16")
    model = build_model(OPTIONS, precision, torch.device("cpu"), LoraOptions(4, 8.0, 0.0, "wq"))
    dtypes = {name.split(".")[-2]: p.dtype for name, p in model.named_parameters()}
    assert dtypes["lora_A"] == dtypes["lora_B"] == torch.float32
    assert dtypes["o_proj"] == torch.bfloat16


def test_patterns_speak_our_names_too_and_layers_are_left_out() -> None:
    def adapted(**more: Any) -> set[str]:
        options = LoraOptions(4, 8.0, 0.0, "q_proj|.*mlp.*", **more)
        model = build_model(OPTIONS, Precision(), torch.device("cpu"), options)
        return {name.removesuffix(".lora_A.weight") for name, _ in model.named_parameters() if ".lora_A." in name}

    every = adapted()
    assert {name.rpartition(".")[2] for name in every} == {"q_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted(exclude=("w2", r"model\.layers\.0\.self_attn")) == {
        name for name in every if "down_proj" not in name and "layers.0.self_attn" not in name
    }
    with pytest.raises(ConfigError, match=r"exclude_layers: '\(' is no regular expression"):
        adapted(exclude=("(",))


@pytest.mark.parametrize(
    ("freeze", "spare", "trained"),
    [
        (("*",), (), set()),
        (("*",), ("*norm*",), {"norm"}),
        (("*",), ("*.tok_embeddings.*",), {"embed_tokens"}),
        (("*attention*", "*mlp*", "*norm*"), (), {"embed_tokens", "lm_head"}),
    ],
)
def test_what_is_trained_beside_adapters(freeze: tuple[str, ...], spare: tuple[str, ...], trained: set[str]) -> None:
    options = LoraOptions(4, 8.0, 0.0, "wq", freeze=freeze, spare=spare)
    model = build_model(OPTIONS, Precision(), torch.device("cpu"), options)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in names if "lora" in name} == {n for n, _ in model.named_parameters() if "lora" in n}
    others = {name for name in names if "lora" not in name}
    assert all(any(word in name for word in trained) for name in others)
    assert all(any(word in name for name in others) for word in trained)
