"""From options to a model on a device: made without memory, then filled by initial values or weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
import xxhash
from torch import Tensor, nn

from runformer.config.task import LoraOptions, ModelOptions, Precision
from runformer.models.decoder import TORCH_DTYPES, CausalLM
from runformer.models.lora import add_lora
from runformer.models.part import Part, Stage, local
from runformer.models.rope import rope_frequencies


def build_model(
    options: ModelOptions, precision: Precision, device: torch.device, lora: LoraOptions | None = None
) -> CausalLM:
    """A model whose parameters hold whatever the memory held: call ``initialise`` or load weights into it.

    Parameters are of ``precision.parameters``; adapters are always float32, as they are what learns.
    """
    model = outline(options, precision, lora)
    materialise(model, device)
    return model


def outline(
    options: ModelOptions, precision: Precision, lora: LoraOptions | None = None, stage: Stage | None = None
) -> CausalLM:
    """A model, or one stage of it, that takes no memory: on the meta device."""
    with torch.device("meta"):
        model = CausalLM(options, precision, stage)
        if lora is not None:
            add_lora(model, lora)
    adapters = torch.promote_types(TORCH_DTYPES[precision.parameters], torch.float32)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(adapters if _is_adapter(name) else TORCH_DTYPES[precision.parameters])
    return model


def materialise(model: CausalLM, device: torch.device) -> None:
    """Give a model memory; only what is computed from its options has values then.

    Only where copies share weights out by ``to_empty``, which brings in sympy for a tensor of the meta device: half a
    second of every start.
    """
    reads = {number: layer.self_attn.kv_heads_H for number, layer in model.layers.items()}
    if hasattr(next(model.parameters()), "to_local"):
        model.to_empty(device=device)
    else:
        for module in model.modules():
            for name, outlined in module.named_parameters(recurse=False):
                memory = torch.empty(outlined.shape, dtype=outlined.dtype, device=device)
                setattr(module, name, nn.Parameter(memory, requires_grad=outlined.requires_grad))
    model.model.frequencies_C = rope_frequencies(model.options)[0].to(device)
    for number, layer in model.layers.items():
        heads = reads[number]
        layer.self_attn.kv_heads_H = None if heads is None else heads.to(device)


@torch.no_grad()
def initialise(
    model: CausalLM, seed: int, parts: Mapping[str, Part] = MappingProxyType({}), *, adapters_only: bool = False
) -> None:
    """Give parameters their initial values.

    Norms are 1, biases and LoRA's B are 0, LoRA's A is uniform (He, as PEFT has it), all other weights are
    normal with ``initializer_range``. Each draws from its own generator, keyed by seed and name: values depend
    neither on the order of parameters nor on how they are split over devices.

    Args:
        model: or a stage of one.
        seed: of the run.
        parts: what the model holds of its parameters; all of those that are not named.
        adapters_only: leave everything but LoRA's factors as it is.
    """
    for name, parameter in model.named_parameters():
        if not adapters_only or _is_adapter(name):
            part = parts.get(name) or Part.whole(tuple(parameter.shape))
            local(parameter).copy_(part.take(_initial(name, part.shape, seed, model.options.initializer_range)))


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _initial(name: str, shape: tuple[int, ...], seed: int, spread: float) -> Tensor:
    if "norm" in name:
        return torch.ones(shape)
    if name.endswith(".bias") or ".lora_B." in name:
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode()) >> 1)
    values = torch.empty(shape)
    if ".lora_A." in name:
        bound = 1 / math.sqrt(shape[1])
        return values.uniform_(-bound, bound, generator=generator)
    return values.normal_(0.0, spread, generator=generator)
