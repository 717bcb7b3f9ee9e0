"""Which model families can be run, and the refusal by name of the others.

This looks at the raw tree before the schema does: a task of another family has keys of its own, and a list of
unknown keys would hide what matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from runformer.config.problems import cut, nearest
from runformer.config.task import ModelOptions
from runformer.config.yaml_file import Node
from runformer.errors import ConfigError
from runformer.plugins.registry import REGISTRY, Registration

SUPPORTED = "Llama 2 and 3, SmolLM2, Qwen2 and 2.5, Qwen3 dense"
_HINT = f"supported: {SUPPORTED}; --register_path names a folder whose plug-ins may add others"

BUILT_IN_FAMILIES = {
    "LlamaConfig": "llama",
    "Qwen2Config": "qwen2",
    "Qwen3Config": "qwen3",
    "LlamaForCausalLM": "llama",
    "ParallelLlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
_DEFAULTS: dict[str, dict[str, Any]] = {"llama": {}, "qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}
_NAMING_PATHS = (
    "model.model_config.type",
    "model.model_config.model_type",
    "model.model_config.architectures",
    "model.arch.type",
    "model.model_type",
    "model.architectures",
)
_EXPERT_COUNTS = (
    "moe_config.expert_num",
    "model.model_config.moe_config.expert_num",
    "model.model_config.expert_num",
    "model.model_config.n_routed_experts",
    "model.model_config.num_experts",
    "model.model_config.num_moe_experts",
)
# Keys of model_config that only other architectures have; a prefix ends in an underscore.
_FOREIGN_KEYS = {
    "moe_": "mixtures of experts",
    "num_experts_per_tok": "mixtures of experts",
    "multi_latent_attention": "multi-head latent attention (DeepSeek)",
    "kv_lora_rank": "multi-head latent attention (DeepSeek)",
    "vision_config": "vision models",
    "vision_model": "vision models",
}
_TRAINER = "CausalLanguageModelingTrainer"
_PYNATIVE_SECTIONS = ("training", "parallelism", "lr_scheduler", "checkpoint")


def node_at(root: Node, path: str) -> Node | None:
    """The value of a dotted path in a tree, or None."""
    current = root
    for name in path.split("."):
        entry = current.value.get(name) if isinstance(current.value, dict) else None
        if entry is None:
            return None
        current = entry.node
    return current


def refuse_other_families(root: Node) -> None:
    """Stop at a task that no model here can run.

    Raises:
        ConfigError: naming what the task asks for, and what there is.
    """
    for path in _NAMING_PATHS:
        for name, node in _names(root, path):
            if name not in _known():
                near = nearest(name, _known(), likeness=0.85)
                raise ConfigError(
                    f"{node.place}: {path}: the model family of {cut(name)!r} is not supported"
                    + (f"; did you mean {near!r}?" if near else ""),
                    hint=_HINT,
                )
    _refuse_experts(root)
    _refuse_other_architectures(root)
    _refuse_other_tasks(root)


def _refuse_experts(root: Node) -> None:
    for path in _EXPERT_COUNTS:
        node = node_at(root, path)
        count = node.value if node else None
        if node and isinstance(count, int | float) and count > 1:
            text = (
                f"{node.place}: {path} is {count}: mixtures of experts (Mixtral, Qwen3-MoE, DeepSeek) are not supported"
            )
            raise ConfigError(text, hint=_HINT)


def _refuse_other_architectures(root: Node) -> None:
    model = node_at(root, "model.model_config")
    for name, entry in model.value.items() if model and isinstance(model.value, dict) else ():
        for foreign, what in _FOREIGN_KEYS.items():
            own = name != "moe_config" and (name.startswith(foreign) if foreign.endswith("_") else name == foreign)
            if own and entry.node.value not in (None, False):
                raise ConfigError(f"{entry.key}: model.model_config.{name}: no support for {what}", hint=_HINT)


def _refuse_other_tasks(root: Node) -> None:
    trainer = node_at(root, "trainer.type")
    if trainer is not None and isinstance(trainer.value, str) and trainer.value != _TRAINER:
        text = f"{trainer.place}: trainer.type: {cut(trainer.value)!r} is not supported"
        raise ConfigError(text, hint=f"the only trainer is {_TRAINER}, for language models ({SUPPORTED})")
    pynative = [name for name in _PYNATIVE_SECTIONS if node_at(root, name) is not None]
    if len(pynative) > 1:
        place = node_at(root, pynative[0])
        raise ConfigError(
            f"{place.place if place else root.place}: sections {', '.join(pynative)}: this file has the schema of "
            "MindSpore Transformers 2's PyNative trainer, which is not supported",
            hint="use a task file with runner_config, lr_schedule and model.model_config",
        )


def _names(root: Node, path: str) -> list[tuple[str, Node]]:
    node = node_at(root, path)
    if node is None:
        return []
    items = node.value if isinstance(node.value, list) else [node]
    return [(item.value, item) for item in items if isinstance(item.value, str) and item.value not in ("", "None")]


def _known() -> dict[str, str]:
    """Every name of a family, built in or a plug-in's, and the family."""
    plugins = REGISTRY.of_kind("model_family")
    return BUILT_IN_FAMILIES | {name: plugin.target.name for name, plugin in plugins.items()}


def family_of(*names: str | list[str] | None) -> str | None:
    """The family that the first known name stands for: a configuration's type, a model type, an architecture."""
    flat = [name for item in names for name in (item if isinstance(item, list) else [item])]
    known = _known()
    return next((known[name] for name in flat if name in known), None)


def check_options(plugin: Registration, options: Iterable[str]) -> None:
    """Refuse what a plug-in's family sets and no model has.

    Raises:
        ConfigError: naming it, and the nearest name of an option.
    """
    known = [item.name for item in fields(ModelOptions)]
    for name in options:
        if name not in known:
            near = nearest(name, known)
            text = f"{plugin.place}: the {plugin} sets {name!r}, which ModelOptions does not have"
            raise ConfigError(text + (f"; did you mean {near!r}?" if near else ""))


def family_defaults(family: str) -> Mapping[str, Any]:
    """The fields of ModelOptions that a family fixes."""
    plugin = REGISTRY.find("model_family", family)
    defaults: Mapping[str, Any] = plugin.target.options if plugin is not None else _DEFAULTS[family]
    return defaults
