"""What a checkpoint says of the model that it is of, so that nothing else is needed to build that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from runformer.config.task import LoraOptions, ModelOptions, RopeScaling

KEY = "model"
"""Where it lies in ``common.json``."""


def describe(options: ModelOptions, lora: LoraOptions | None) -> dict[str, Any]:
    """A model's shape and adapters, as JSON can hold them."""
    return {"options": asdict(options), "lora": None if lora is None else asdict(lora)}


def described(common: Mapping[str, Any] | None) -> tuple[ModelOptions, LoraOptions | None] | None:
    """What ``describe`` made; None: the checkpoint does not say."""
    try:
        found = (common or {})[KEY]
        options = {**found["options"], "eos_token_ids": tuple(found["options"]["eos_token_ids"])}
        scaling = options["rope_scaling"]
        options["rope_scaling"] = None if scaling is None else RopeScaling(**scaling)
        lora = None if found["lora"] is None else _lora(found["lora"])
        return ModelOptions(**{field.name: options[field.name] for field in fields(ModelOptions)}), lora
    except (KeyError, TypeError):
        return None


def _lora(found: Mapping[str, Any]) -> LoraOptions:
    patterns = {name: tuple(found[name]) for name in ("exclude", "freeze", "spare")}
    return LoraOptions(**{**found, **patterns})
