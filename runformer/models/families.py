"""Model families: how a Hugging Face ``config.json`` describes the decoder.

A family is a row of a table: the options that its architecture fixes and its configuration does not name.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runformer.config.families import check_options
from runformer.config.task import ModelOptions, ModelTask, RopeScaling
from runformer.errors import ConfigError
from runformer.plugins.failures import blaming
from runformer.plugins.registry import REGISTRY, Registration

Config = Mapping[str, Any]


def _llama(config: Config) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return {"qkv_bias": bias, "attention_output_bias": bias, "mlp_bias": bool(config.get("mlp_bias", False))}


def _qwen2(_: Config) -> dict[str, Any]:
    return {"qkv_bias": True}


def _qwen3(config: Config) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return {"qk_norm": True, "qkv_bias": bias, "attention_output_bias": bias, "head_dim": config.get("head_dim", 128)}


FAMILIES: dict[str, Callable[[Config], dict[str, Any]]] = {"llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3}
"""Hugging Face's ``model_type`` → what the family adds to the common options. SmolLM2 is a Llama."""

_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def resolve_options(task: ModelTask) -> ModelOptions:
    """The shape of the model that a task asks for.

    Raises:
        ConfigError: the folder's ``config.json`` is missing, damaged, or of a family that is not supported.
    """
    if task.options is not None:
        return task.options
    assert task.pretrained_dir is not None, "a model task has options or a folder"
    options = options_from_config(read_config(task.pretrained_dir), str(task.pretrained_dir / "config.json"))
    return replace(options, **task.overrides)


def read_config(folder: Path) -> Config:
    """The ``config.json`` of a Hugging Face folder."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: no config.json here, so this is not a Hugging Face model folder",
            hint="pretrained_model_dir names a folder with config.json, tokenizer and safetensors files",
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: a JSON object is expected, not {type(config).__name__}")
    return config


def options_from_config(config: Config, where: str) -> ModelOptions:
    """Turn a Hugging Face configuration into options; ``where`` names it in errors."""
    family = _family(config, where)
    missing = [key for key in _REQUIRED if key not in config]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} missing")
    _refuse_variants(config, where)
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    options: dict[str, Any] = {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "max_positions": config.get("max_position_embeddings", 2048),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        "rope_scaling": _rope_scaling(rope, where),
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
        "initializer_range": config.get("initializer_range", 0.02),
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_ids": _ids(config.get("eos_token_id")),
        "pad_token_id": config.get("pad_token_id"),
    }
    return ModelOptions(**(options | family(config)))


def _family(config: Config, where: str) -> Callable[[Config], dict[str, Any]]:
    """What the family of a configuration adds to the common options."""
    family = str(config.get("model_type", ""))
    plugins = REGISTRY.of_kind("model_family")
    if family in FAMILIES:
        return FAMILIES[family]
    if family in plugins:
        return lambda config: _plugin_options(plugins[family], config, where)
    near = difflib.get_close_matches(family, (*FAMILIES, *plugins), n=1)
    raise ConfigError(
        f"{where}: model_type {family!r} is not supported" + (f" (did you mean {near[0]!r}?)" if near else ""),
        hint=f"supported: {', '.join(sorted(FAMILIES))} (Llama 2/3, SmolLM2, Qwen2/2.5, Qwen3 dense), "
        "and families of plug-ins (--register_path)",
    )


def _plugin_options(plugin: Registration, config: Config, where: str) -> dict[str, Any]:
    family, further = plugin.target, {}
    if family.from_config is not None:
        with blaming(plugin, ConfigError, where):
            further = dict(family.from_config(config))
    check_options(plugin, further)
    return {**family.options, **further}


def _refuse_variants(config: Config, where: str) -> None:
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ConfigError(f"{where}: hidden_act {config['hidden_act']!r} is not supported, only 'silu' is")
    if config.get("use_sliding_window"):
        raise ConfigError(f"{where}: use_sliding_window true is not supported, only full attention is")


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _rope_scaling(rope: Config, where: str) -> RopeScaling | None:
    kind: Any = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ("linear", "yarn", "llama3"):
        raise ConfigError(
            f"{where}: rope_type {kind!r} is not supported", hint="supported: default, linear, yarn, llama3"
        )
    names = ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale")
    given = {name: rope[name] for name in (*names, "mscale_all_dim") if rope.get(name) is not None}
    return RopeScaling(kind, float(rope["factor"]), rope.get("original_max_position_embeddings"), **given)
