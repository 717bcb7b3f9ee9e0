"""Rotary position embedding (arXiv:2104.09864): the frequencies, and their four ways to reach further.

Frequencies follow Hugging Face's conventions, so that folders from there give the same logits:
element ``i`` of the first half of a head is rotated together with element ``i`` of the second half.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from runformer.config.task import ModelOptions, RopeScaling


def rope_frequencies(options: ModelOptions) -> tuple[Tensor, float]:
    """Angle per position of each pair of elements, and the factor on cos and sin.

    Returns:
        ``(head_dim / 2,)`` float32 on the CPU, in radians per position; and the attention factor,
        which is 1 except for YaRN.
    """
    scaling = options.rope_scaling
    if scaling is None:
        return _plain(options.rope_theta, options.head_dim), 1.0
    return _SCALINGS[scaling.kind](options, scaling)


def _plain(theta: float, head_dim: int) -> Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
    return 1.0 / theta**exponents


def _linear(options: ModelOptions, scaling: RopeScaling) -> tuple[Tensor, float]:
    return _plain(options.rope_theta, options.head_dim) / scaling.factor, 1.0


def _ntk(options: ModelOptions, scaling: RopeScaling) -> tuple[Tensor, float]:
    return _plain(options.rope_theta * scaling.factor, options.head_dim), 1.0


def _yarn(options: ModelOptions, scaling: RopeScaling) -> tuple[Tensor, float]:
    """YaRN, arXiv:2309.00071, section 3.2: keep short waves, interpolate long ones, ramp in between."""
    original = scaling.original_max_positions or options.max_positions
    head_dim, theta = options.head_dim, options.rope_theta

    def pair_turning(rotations: float) -> float:
        """Index of the pair that turns this often within the original length."""
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_turning(scaling.beta_slow)), head_dim - 1)
    width = max(high - low, 0.001)  # a ramp of width 0 would divide by 0
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - low) / width).clamp(0, 1)
    plain = _plain(theta, head_dim)
    return plain / scaling.factor * ramp + plain * (1 - ramp), _yarn_attention_factor(scaling)


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return temperature(scaling.mscale) / temperature(scaling.mscale_all_dim)
    return temperature(1.0)


def _llama3(options: ModelOptions, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Llama 3.1's scaling: as ``linear`` for waves longer than the original length, smooth in between."""
    original = scaling.original_max_positions or options.max_positions
    plain = _plain(options.rope_theta, options.head_dim)
    turns = original * plain / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
    return (1 - keep) * plain / scaling.factor + keep * plain, 1.0


_SCALINGS: dict[str, Callable[[ModelOptions, RopeScaling], tuple[Tensor, float]]] = {
    "linear": _linear,
    "ntk": _ntk,
    "yarn": _yarn,
    "llama3": _llama3,
}


def rope_tables(frequencies_C: Tensor, factor: float, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles at some positions, for both halves of every head.

    The sines of the first half are negated: ``x · cos + swapped_halves(x) · sin`` is ``x`` rotated.

    Args:
        frequencies_C: radians per position, ``(C,)`` with ``C = head_dim / 2``.
        factor: multiplies both tables (YaRN's attention factor).
        positions: integers, ``(L,)`` or ``(B, L)``.
        dtype: of the tables; angles are always computed in float32.

    Returns:
        Two tensors of shape ``positions.shape + (1, head_dim)``; all heads are rotated alike.
    """
    angles = positions.to(torch.float32)[..., None, None] * frequencies_C
    cos, sin = angles.cos() * factor, angles.sin() * factor
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)
