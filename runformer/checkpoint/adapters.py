"""LoRA's factors beside the weights they adapt: in PEFT's folders, or merged into them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runformer.checkpoint.tensors import TYPES, NamedTensors
from runformer.config.task import LoraOptions
from runformer.errors import CheckpointError
from runformer.models.part import Box

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_VARIANTS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save")
_PEFT_PREFIX = "base_model.model."


class Combined(NamedTensors):
    """Tensors of one source, and what that lacks from another."""

    def __init__(self, first: NamedTensors, rest: NamedTensors) -> None:
        super().__init__({**dict.fromkeys(rest, rest), **dict.fromkeys(first, first)})
        self._sources: Mapping[str, NamedTensors] = self._index  # type: ignore[assignment]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._sources[name].shape(name)

    def kind(self, name: str) -> str:
        """The type of one tensor."""
        return self._sources[name].kind(name)

    def origin(self, name: str) -> str:
        """Where one tensor lies."""
        return self._sources[name].origin(name)

    def read(self, name: str, box: Box) -> Tensor:
        """A box of one tensor, on the CPU."""
        return self._sources[name].read(name, box)

    def fill(self, name: str, box: Box, out: Tensor) -> None:
        """Copy a box of one tensor."""
        self._sources[name].fill(name, box, out)


class Merged(NamedTensors):
    """Weights with their adapters added to them, ``W + scaling · B A``; the factors themselves are not among them.

    The sum is made in float32, and has the weight's type.
    """

    def __init__(self, tensors: NamedTensors, scaling: float) -> None:
        super().__init__({name: None for name in tensors if not FACTOR.fullmatch(name)})
        self._tensors, self._scaling = tensors, scaling

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._tensors.shape(name)

    def kind(self, name: str) -> str:
        """The type of one tensor."""
        return self._tensors.kind(name)

    def origin(self, name: str) -> str:
        """Where one tensor lies."""
        return self._tensors.origin(name)

    def read(self, name: str, box: Box) -> Tensor:
        """A box of one tensor, on the CPU."""
        module = name.removesuffix(".weight")
        first, second = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        weight = self._tensors.read(name, box)
        if not (name.endswith(".weight") and first in self._tensors and second in self._tensors):
            return weight
        rank = self._tensors.shape(first)[0]
        a = self._tensors.read(first, Box((0, box.offset[1]), (rank, box.shape[1]))).float()
        b = self._tensors.read(second, Box((box.offset[0], 0), (box.shape[0], rank))).float()
        return torch.addmm(weight.float(), b, a, alpha=self._scaling).to(TYPES[self.kind(name)])


def is_peft_folder(folder: Path) -> bool:
    """Whether PEFT wrote adapters there."""
    return (folder / PEFT_CONFIG).is_file() and (folder / PEFT_WEIGHTS).is_file()


def peft_name(name: str) -> str:
    """PEFT's name of one of our adapters' factors."""
    return _PEFT_PREFIX + name


def from_peft(name: str) -> str:
    """Our name of one of PEFT's; others stay as they are."""
    return name.removeprefix(_PEFT_PREFIX)


def read_peft_config(folder: Path) -> LoraOptions:
    """What a folder's adapters are.

    Raises:
        CheckpointError: it is damaged, or they are of a kind that cannot be loaded.
    """
    path = folder / PEFT_CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
        lora = LoraOptions(int(config["r"]), float(config["lora_alpha"]), float(config.get("lora_dropout", 0.0)), "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not a configuration of LoRA adapters: {error!r}", hint="save it again"
        ) from None
    odd = [
        key for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out") if config.get(key)
    ]
    odd += ["modules_to_save"] * bool(config.get("modules_to_save")) + ["bias"] * (config.get("bias", "none") != "none")
    if config.get("peft_type", "LORA") != "LORA" or odd:
        what = ", ".join(odd) or f"peft_type {config['peft_type']}"
        raise CheckpointError(f"{path}: adapters with {what} are not supported", hint="only plain LoRA is")
    return lora


def peft_config(lora: LoraOptions, modules: list[str]) -> dict[str, Any]:
    """The configuration that PEFT loads adapters of these modules with."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
