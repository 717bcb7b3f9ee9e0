"""Logits and greedy tokens equal those of transformers, for every family and every rotary scaling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runformer.config.task import ModelTask, Precision
from runformer.errors import ConfigError
from runformer.models.build import build_model
from runformer.models.decoder import CausalLM
from runformer.models.families import options_from_config, read_config, resolve_options

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # large enough for logits to differ and attention to be sharp
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("llama", {"num_key_value_heads": 6}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "smollm2": ("llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen2-yarn-mscale": ("qwen2", {"rope_parameters": YARN | {"mscale": 1.2, "mscale_all_dim": 0.7}}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-bias": ("qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
}


def make_pair(case: str, folder: Path, seed: int = 0) -> tuple[Any, CausalLM]:
    """A random transformers model, saved, and ours loaded from its files by name alone."""
    family, changes = CASES[case]
    torch.manual_seed(seed)
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(family, **(SIZES | changes)), attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms of 1 and biases of 0 would hide a swapped or missing one
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.eval().save_pretrained(folder)
    options = resolve_options(ModelTask("pair", None, folder))
    ours = build_model(options, Precision(), torch.device("cpu"))
    ours.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return theirs, ours


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    theirs, ours = make_pair(case, tmp_path)
    tokens = torch.randint(SIZES["vocab_size"], (2, 160), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
        actual = ours.logits(ours(tokens))
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("case", ["llama3", "smollm2", "qwen2", "qwen3"])
def test_greedy_tokens_equal_transformers(case: str, tmp_path: Path) -> None:
    theirs, ours = make_pair(case, tmp_path, seed=2)
    prompt = torch.tensor([[5, 17, 101, 3]])
    expected = theirs.generate(prompt, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0)
    tokens = prompt
    with torch.no_grad():
        for _ in range(64):
            tokens = torch.cat((tokens, ours.logits(ours(tokens)[:, -1:]).argmax(-1)), dim=1)
    assert tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("case", ["llama3", "qwen2", "qwen3"])
def test_bfloat16_products_stay_close_to_float32(case: str, tmp_path: Path) -> None:
    _, exact = make_pair(case, tmp_path)
    rounded = build_model(exact.options, Precision(compute="bfloat16"), torch.device("cpu"))
    rounded.load_state_dict(exact.state_dict())
    tokens = torch.randint(SIZES["vocab_size"], (1, 32), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, actual = exact.logits(exact(tokens)), rounded.logits(rounded(tokens))
    assert rounded.model.layers["0"].self_attn.q_proj.weight.dtype == torch.float32
    assert 0 < (actual - expected).norm() / expected.norm() < 0.05


def test_gradients_equal_transformers(tmp_path: Path) -> None:
    theirs, ours = make_pair("qwen3-bias", tmp_path)
    tokens = torch.randint(SIZES["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(4))
    theirs(tokens).logits.square().mean().backward()
    ours.logits(ours(tokens)).square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        reference = expected[name].grad
        assert parameter.grad is not None
        assert (parameter.grad - reference).norm() <= 2e-5 * reference.norm(), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "qwen4"}, "did you mean 'qwen"),
        ({"model_type": "bert"}, "not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "rope_type 'dynamic'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        options_from_config(SIZES | {"model_type": "llama"} | change, "config.json")


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json here"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not readable as JSON"):
        read_config(tmp_path)
