"""Sizes of a plan as ``parallel_config`` writes them, and the plans near it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from runformer.config.task import ModelOptions

_SHOWN_PLANS = 3


class Sizes(NamedTuple):
    """A plan as ``parallel_config`` writes it."""

    data: int
    model: int
    context: int
    pipeline: int

    def __str__(self) -> str:
        return (
            f"data_parallel {self.data} × model_parallel {self.model} × context_parallel {self.context} × "
            f"pipeline_stage {self.pipeline}"
        )


def nearest_plans(asked: Sizes, devices: int, options: ModelOptions | None) -> list[Sizes]:
    """Layouts for exactly ``devices`` devices that the model allows, the likest first.

    Likeness is in factors of two over all dimensions; of the like ones those come first that change the number of
    copies, since that leaves a device's share of the model as it is.
    """

    def unlikeness(plan: Sizes) -> tuple[float, float]:
        steps = [abs(math.log2(ours / theirs)) for ours, theirs in zip(plan, asked, strict=True)]
        return sum(steps[1:]), sum(steps)

    return sorted(_plans(devices, options), key=unlikeness)[:_SHOWN_PLANS]


def _plans(devices: int, options: ModelOptions | None) -> Iterator[Sizes]:
    for model in _divisors(devices):
        if options is not None and model > options.num_heads:
            continue
        for pipeline in _divisors(devices // model):
            if options is not None and pipeline > options.num_layers:
                continue
            for context in _divisors(devices // model // pipeline):
                yield Sizes(devices // model // pipeline // context, model, context, pipeline)


def _divisors(number: int) -> list[int]:
    small = [candidate for candidate in range(1, math.isqrt(number) + 1) if number % candidate == 0]
    return sorted({*small, *(number // candidate for candidate in small)})
