"""The model family Mistral: a dense decoder as Llama's, with attention over the whole text (7B from v0.2 on)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runformer import plugins

# What a config.json means that leaves them out: transformers' defaults.
_WINDOW = 4096
_MAX_POSITIONS = 131072
_KV_HEADS = 8


def from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a Hugging Face ``config.json`` says that is Mistral's own.

    Raises:
        ValueError: attention reaches back less far than the longest text, as in v0.1 (its window: 4096).
    """
    window = config.get("sliding_window", _WINDOW)
    longest = config.get("max_position_embeddings", _MAX_POSITIONS)
    if window is not None and window < longest:
        text = f"sliding_window {window} is less than max_position_embeddings {longest}"
        raise ValueError(f"{text}, but only full attention is computed")
    options = {"max_positions": longest}
    return options if "num_key_value_heads" in config else options | {"num_kv_heads": _KV_HEADS}


plugins.model_family("mistral", names=("MistralConfig", "MistralForCausalLM"), from_config=from_config)
