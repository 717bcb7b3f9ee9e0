"""Writing what others load: a Hugging Face folder, files of MindFormers, PEFT's adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from runformer.checkpoint.layout import sync_file
from runformer.checkpoint.tensors import TYPES, NamedTensors
from runformer.config.task import ModelOptions
from runformer.errors import CheckpointError

CONFIG, GENERATION = "config.json", "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", GENERATION),
)
"""Files of a model's folder that go along with its weights as they are."""

_ROPE_FIELDS = {
    "linear": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


@dataclass(frozen=True, slots=True)
class Shard:
    """A file to write: its name, and for each tensor in it the name in the source and the one in the file."""

    name: str
    tensors: Mapping[str, str]


def hf_config(options: ModelOptions) -> dict[str, Any]:
    """A ``config.json`` that describes a model, of the family that has all of its parts."""
    family = "qwen3" if options.qk_norm else "qwen2" if options.qkv_bias and not options.mlp_bias else "llama"
    if family == "qwen2" and options.attention_output_bias:
        family = "llama"
    rope: dict[str, Any] = {"rope_theta": options.rope_theta, "rope_type": "default"}
    if options.rope_scaling is not None:
        rope |= _rope_scaling(options)
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": options.vocab_size,
        "hidden_size": options.hidden_size,
        "intermediate_size": options.intermediate_size,
        "num_hidden_layers": options.num_layers,
        "num_attention_heads": options.num_heads,
        "num_key_value_heads": options.num_kv_heads,
        "head_dim": options.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": options.max_positions,
        "rms_norm_eps": options.rms_norm_eps,
        "rope_theta": options.rope_theta,
        "rope_parameters": rope,
        "tie_word_embeddings": options.tie_embeddings,
        "initializer_range": options.initializer_range,
        "bos_token_id": options.bos_token_id,
        "eos_token_id": _ids(options.eos_token_ids),
        "pad_token_id": options.pad_token_id,
        "use_cache": True,
    }
    if options.rope_scaling is not None:  # where versions of transformers before 5 look
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    if family != "qwen2":
        config["attention_bias"] = options.qkv_bias
    if family == "llama":
        config["mlp_bias"] = options.mlp_bias
    return config


def shards_of(tensors: NamedTensors, names: Mapping[str, str], dtype: torch.dtype | None, limit: int) -> list[Shard]:
    """Files of at most ``limit`` bytes each, or of one tensor that is larger.

    Args:
        tensors: the source.
        names: of its tensors those to write, and their names there.
        dtype: the type to write; None: each tensor's own.
        limit: bytes.
    """
    groups: list[dict[str, str]] = [{}]
    size = 0
    for name, theirs in names.items():
        item_bytes = (dtype or TYPES[tensors.kind(name)]).itemsize
        nbytes = torch.Size(tensors.shape(name)).numel() * item_bytes
        if groups[-1] and size + nbytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = theirs
        size += nbytes
    if len(groups) == 1:
        return [Shard(SINGLE, groups[0])]
    count = len(groups)
    return [Shard(f"model-{number:05}-of-{count:05}.safetensors", group) for number, group in enumerate(groups, 1)]


def write_shards(
    folder: Path, shards: Sequence[Shard], tensors: NamedTensors, dtype: torch.dtype | None, *, workers: int, kind: str
) -> None:
    """Write files, several at a time; each takes the memory of its tensors. ``kind`` says for whom: pt or ms."""

    def write(shard: Shard) -> None:
        types = {name: dtype or TYPES[tensors.kind(name)] for name in shard.tensors}
        content = {theirs: tensors[name].to(types[name]).contiguous() for name, theirs in shard.tensors.items()}
        save_file(content, folder / shard.name, metadata={"format": kind})
        sync_file(folder / shard.name)

    with ThreadPoolExecutor(workers, "shards") as pool:
        list(pool.map(write, shards))
    if len(shards) > 1:
        total = sum((folder / shard.name).stat().st_size for shard in shards)
        places = {theirs: shard.name for shard in shards for theirs in shard.tensors.values()}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def copy_beside(source: Path | None, folder: Path) -> None:
    """Take along tokenizer and generation settings from a model's folder."""
    for name in BESIDE:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
            sync_file(folder / name)


def generation_config(options: ModelOptions) -> dict[str, Any]:
    """A ``generation_config.json`` for a model that brings none."""
    ids = {
        "bos_token_id": options.bos_token_id,
        "eos_token_id": _ids(options.eos_token_ids),
        "pad_token_id": options.pad_token_id,
    }
    return {key: value for key, value in ids.items() if value is not None}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, and bring it to the disk."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync_file(path)


def _ids(ids: Iterable[int]) -> int | list[int] | None:
    found = list(ids)
    return found[0] if len(found) == 1 else found or None


def _rope_scaling(options: ModelOptions) -> dict[str, Any]:
    scaling = options.rope_scaling
    assert scaling is not None, "there is one"
    if scaling.kind not in _ROPE_FIELDS:
        raise CheckpointError(f"rope scaling {scaling.kind!r} has no name in a Hugging Face config.json")
    names = ("factor", *_ROPE_FIELDS[scaling.kind])
    found = {name: getattr(scaling, name) for name in names} | {"rope_type": scaling.kind}
    if scaling.original_max_positions is not None:
        found["original_max_position_embeddings"] = scaling.original_max_positions
    return {key: value for key, value in found.items() if value is not None}
