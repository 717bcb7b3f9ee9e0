"""How well the hardware is used: model FLOPs a token, the peak of known devices, and peak memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runformer.config.task import ModelOptions

if TYPE_CHECKING:
    import torch

# Dense bf16 FLOP/s from the vendors' data sheets, by a part of the device's name; the first that fits counts.
_PEAK_FLOPS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H200 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("H800", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("RTX 4090", 165e12),
)


def flops_per_token(options: ModelOptions, sequence_length: int, *, frozen: bool = False) -> float:
    """Model FLOPs that training spends on one token, forward and backward: ``6 N + 12 L H Q T``.

    N counts the weights of every matrix product (the output projection, not the input embedding), L layers,
    H heads of Q elements, T the sequence length. Recomputation and the causal mask are not counted: the
    convention of PaLM (arXiv:2204.02311, appendix B), so that figures compare.

    Args:
        options: the model's shape.
        sequence_length: tokens in a row.
        frozen: only adapters are trained: the weights get no gradient, which leaves ``4 N``. The adapters' own
            products, under a hundredth, are not counted.
    """
    query = options.num_heads * options.head_dim
    key_value = options.num_kv_heads * options.head_dim
    attention = options.hidden_size * (2 * query + 2 * key_value)
    feed_forward = 3 * options.hidden_size * options.intermediate_size
    weights = options.num_layers * (attention + feed_forward) + options.hidden_size * options.vocab_size
    scores = 12 * options.num_layers * query * sequence_length
    return float((4 if frozen else 6) * weights + scores)


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOP/s; None for a CPU and for devices that are not known."""
    return _peak_by_name(_device_name(device))


def model_flops_utilization(tokens_per_second: float, flops_per_token: float, peak: float | None) -> float | None:
    """MFU: the part of the peak (FLOP/s of one device) that one device's tokens account for; None without a peak."""
    return None if peak is None else tokens_per_second * flops_per_token / peak


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory so far: allocated by tensors on an accelerator, resident in this process on a CPU."""
    import torch

    if device.type == "cpu":
        return _peak_resident_bytes()
    return int(torch.get_device_module(device).max_memory_allocated(device))


def _peak_by_name(name: str) -> float | None:
    return next((peak for part, peak in _PEAK_FLOPS if part in name), None)


def _device_name(device: torch.device) -> str:
    import torch

    return "" if device.type == "cpu" else str(torch.get_device_module(device).get_device_name(device))


def _peak_resident_bytes() -> int:
    # Preferred to getrusage, whose figure starts at the size of the process that started this one.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _rusage_bytes()


def _rusage_bytes() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
