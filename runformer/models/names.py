"""Parameter names: ours, which are Hugging Face's, and those of MindFormers' Llama classes.

Between the two it is a pure renaming; tensors are the same, rotary order included. Only where the
original was built with ``qkv_concat`` are several of our tensors stored as one (``fused_parts``).
"""

from __future__ import annotations

import re

_ENDS = {
    "model.tok_embeddings.embedding_weight": "model.embed_tokens.weight",
    "model.norm_out.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_LINEAR = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
_NORMS = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
}
_ADAPTERS = {"mindpet_delta_lora_a": "lora_A.weight", "mindpet_delta_lora_b": "lora_B.weight"}
_LINEAR_PARAMETERS = {"weight": "weight", "bias": "bias", **_ADAPTERS}

_IN_LAYER = {
    **{f"{theirs}.weight": f"{ours}.weight" for theirs, ours in _NORMS.items()},
    **{
        f"{theirs}.{their_parameter}": f"{ours}.{our_parameter}"
        for theirs, ours in _LINEAR.items()
        for their_parameter, our_parameter in _LINEAR_PARAMETERS.items()
    },
}
_OUTSIDE_LAYERS = {**_ENDS, **{f"lm_head.{theirs}": f"lm_head.{ours}" for theirs, ours in _ADAPTERS.items()}}

_IN_LAYER_BACK = {ours: theirs for theirs, ours in _IN_LAYER.items()}
_OUTSIDE_LAYERS_BACK = {ours: theirs for theirs, ours in _OUTSIDE_LAYERS.items()}

_FUSED = {
    "attention.w_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "feed_forward.w_gate_hidden": ("mlp.gate_proj", "mlp.up_proj"),
}
_LAYER = re.compile(r"(model\.layers\.(?:0|[1-9][0-9]*)\.)(.+)")


def from_mindformers(name: str) -> str | None:
    """Our name for MindFormers' ``name``; None where it has none."""
    return _rename(name, _OUTSIDE_LAYERS, _IN_LAYER)


def to_mindformers(name: str) -> str:
    """MindFormers' name for our ``name``.

    Raises:
        ValueError: no parameter of the decoder is called so.
    """
    renamed = _rename(name, _OUTSIDE_LAYERS_BACK, _IN_LAYER_BACK)
    if renamed is None:
        raise ValueError(f"{name!r} names no parameter of the decoder")
    return renamed


def is_parameter_name(name: str) -> bool:
    """Whether some decoder has a parameter that we call ``name``."""
    return _rename(name, _OUTSIDE_LAYERS_BACK, _IN_LAYER_BACK) is not None


def fused_parts(name: str) -> tuple[str, ...] | None:
    """Our names for the tensors stored as MindFormers' one ``name``, in their order; None for a plain one.

    ``w_qkv`` holds, for each key-value head, the rows of its query heads, of its key and of its value;
    ``w_gate_hidden`` holds rows of gate and up in turn.
    """
    in_layer = _LAYER.fullmatch(name)
    if in_layer is None:
        return None
    module, _, parameter = in_layer[2].rpartition(".")
    if module not in _FUSED or parameter not in ("weight", "bias"):
        return None
    return tuple(f"{in_layer[1]}{part}.{parameter}" for part in _FUSED[module])


def _rename(name: str, outside_layers: dict[str, str], in_layer: dict[str, str]) -> str | None:
    match = _LAYER.fullmatch(name)
    if match is None:
        return outside_layers.get(name)
    renamed = in_layer.get(match[2])
    return None if renamed is None else match[1] + renamed
