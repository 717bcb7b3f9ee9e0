"""From options to a model on a device: made without memory, then filled by initial values or weights."""

from __future__ import annotations

import math

import torch
import xxhash
from torch import Tensor

from runformer.config.task import LoraOptions, ModelOptions, Precision
from runformer.models.decoder import TORCH_DTYPES, CausalLM
from runformer.models.lora import add_lora
from runformer.models.rope import rope_frequencies


def build_model(
    options: ModelOptions, precision: Precision, device: torch.device, lora: LoraOptions | None = None
) -> CausalLM:
    """A model whose parameters hold whatever the memory held: call ``initialise`` or load weights into it.

    Parameters are of ``precision.parameters``; adapters are always float32, as they are what learns.
    """
    with torch.device("meta"):
        model = CausalLM(options, precision)
        if lora is not None:
            add_lora(model, lora)
    for name, parameter in model.named_parameters():
        dtype = torch.float32 if _is_adapter(name) else TORCH_DTYPES[precision.parameters]
        parameter.data = parameter.data.to(dtype)
    model.to_empty(device=device)
    model.model.frequencies_C.copy_(rope_frequencies(options)[0])
    return model


@torch.no_grad()
def initialise(model: CausalLM, seed: int, *, adapters_only: bool = False) -> None:
    """Give parameters their initial values.

    Norms are 1, biases and LoRA's B are 0, LoRA's A is uniform (He, as PEFT has it), all other weights are
    normal with ``initializer_range``. Each draws from its own generator, keyed by seed and name: values depend
    neither on the order of parameters nor on how they will be split over devices.
    """
    for name, parameter in model.named_parameters():
        if not adapters_only or _is_adapter(name):
            parameter.copy_(_initial(name, parameter, seed, model.options.initializer_range))


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _initial(name: str, parameter: Tensor, seed: int, spread: float) -> Tensor:
    if "norm" in name:
        return torch.ones(parameter.shape)
    if name.endswith(".bias") or ".lora_B." in name:
        return torch.zeros(parameter.shape)
    generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode()) >> 1)
    values = torch.empty(parameter.shape)
    if ".lora_A." in name:
        bound = 1 / math.sqrt(parameter.shape[1])
        return values.uniform_(-bound, bound, generator=generator)
    return values.normal_(0.0, spread, generator=generator)
