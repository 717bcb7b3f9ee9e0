"""Parameter names of Hugging Face and of MindFormers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runformer.config.task import LoraOptions, ModelOptions, Precision
from runformer.models.build import build_model
from runformer.models.names import from_mindformers, fused_parts, is_parameter_name, to_mindformers

COMMON_PIECES = st.sampled_from(["model", "layers", "0", "1", "01", "17", "lm_head", "weight", "bias"])
OUR_PIECES = st.sampled_from(["self_attn", "q_proj", "mlp", "gate_proj", "norm", "embed_tokens", "lora_A"])
THEIR_PIECES = st.sampled_from(["attention", "wq", "w_qkv", "feed_forward", "w1", "norm_out", "mindpet_delta_lora_a"])
PIECES = COMMON_PIECES | OUR_PIECES | THEIR_PIECES
LINEAR = st.sampled_from(["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"])
PARAMETER = st.sampled_from(["weight", "bias", "lora_A.weight", "lora_B.weight"])
IN_LAYER = st.builds("{}.{}".format, LINEAR, PARAMETER) | st.sampled_from(
    ["input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_norm.weight"]
)
NAMES = st.builds("model.layers.{}.{}".format, st.integers(0, 10**4), IN_LAYER) | st.sampled_from(
    ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("model.embed_tokens.weight", "model.tok_embeddings.embedding_weight"),
        ("model.norm.weight", "model.norm_out.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.attention.wq.weight"),
        ("model.layers.0.self_attn.k_proj.bias", "model.layers.0.attention.wk.bias"),
        ("model.layers.11.self_attn.o_proj.weight", "model.layers.11.attention.wo.weight"),
        ("model.layers.3.mlp.gate_proj.weight", "model.layers.3.feed_forward.w1.weight"),
        ("model.layers.3.mlp.down_proj.weight", "model.layers.3.feed_forward.w2.weight"),
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3.feed_forward.w3.weight"),
        ("model.layers.3.input_layernorm.weight", "model.layers.3.attention_norm.weight"),
        ("model.layers.3.post_attention_layernorm.weight", "model.layers.3.ffn_norm.weight"),
        ("model.layers.2.self_attn.v_proj.lora_A.weight", "model.layers.2.attention.wv.mindpet_delta_lora_a"),
        ("model.layers.2.self_attn.v_proj.lora_B.weight", "model.layers.2.attention.wv.mindpet_delta_lora_b"),
    ],
)
def test_the_names_that_mindformers_writes(ours: str, theirs: str) -> None:
    assert (to_mindformers(ours), from_mindformers(theirs)) == (theirs, ours)


@given(NAMES)
def test_every_name_comes_back(name: str) -> None:
    assert from_mindformers(to_mindformers(name)) == name


@given(st.lists(PIECES, max_size=6).map(".".join))
def test_no_two_names_become_one(name: str) -> None:
    ours = from_mindformers(name)
    if ours is not None:
        assert is_parameter_name(ours)
        assert to_mindformers(ours) == name


@given(st.text(max_size=60))
def test_other_names_have_none(name: str) -> None:
    if not is_parameter_name(name):
        with pytest.raises(ValueError, match="names no parameter"):
            to_mindformers(name)


def test_every_parameter_of_a_model_has_a_name() -> None:
    options = ModelOptions(32, 16, 24, 2, 4, 2, 4, 64, qkv_bias=True, qk_norm=True, mlp_bias=True)
    model = build_model(options, Precision(), torch.device("cpu"), LoraOptions(2, 4.0, 0.0, ".*wq|.*w1|lm_head"))
    names = [name for name, _ in model.named_parameters()]
    assert len({to_mindformers(name) for name in names}) == len(names)


def test_fused_tensors_name_their_parts() -> None:
    assert fused_parts("model.layers.1.attention.w_qkv.bias") == (
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.1.self_attn.k_proj.bias",
        "model.layers.1.self_attn.v_proj.bias",
    )
    assert fused_parts("model.layers.1.feed_forward.w_gate_hidden.weight") == (
        "model.layers.1.mlp.gate_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    )
    assert fused_parts("model.layers.1.attention.wq.weight") is None
