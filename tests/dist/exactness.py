"""Trains tiny models in one layout after another, and writes the curves: started by msrun, once for each world size.

    msrun … tests/dist/exactness.py CASES.json CURVES.json

Each case is a dictionary: ``family``, ``dtype``, ``layout`` (fields of ``ParallelOptions``), ``micro_batches``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from runformer.config.layout import ParallelOptions
from runformer.config.task import LoraOptions, LossScaleOptions, ModelOptions, OptimizerOptions, Precision
from runformer.data.batch import TokenBatch
from runformer.data.documents import places_in
from runformer.models.build import initialise
from runformer.parallel.compose import compose
from runformer.parallel.group import Group, join
from runformer.parallel.mesh import lay_out
from runformer.parallel.shards import Shards
from runformer.train.loss_scale import LossScaler
from runformer.train.optimizer import NamedAdamW
from runformer.train.step import TrainStep

STEPS, ROWS, LENGTH, VOCABULARY = 10, 8, 16, 61

LLAMA = ModelOptions(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=50, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8,
    max_positions=LENGTH, initializer_range=0.1,
)  # fmt: skip
FAMILIES = {
    "llama": LLAMA,
    # The published plan's heads: 14 on 2.
    "qwen2": replace(LLAMA, num_heads=14, num_kv_heads=2, head_dim=4, qkv_bias=True, tie_embeddings=True),
    "qwen3": replace(LLAMA, num_heads=6, num_kv_heads=3, qk_norm=True, attention_output_bias=True, mlp_bias=True),
    "smollm2": replace(LLAMA, num_heads=9, num_kv_heads=3, head_dim=4, tie_embeddings=True, num_layers=5),
}


def batch_of(step: int) -> TokenBatch:
    """A global batch; rows count for very different numbers of tokens.

    Some steps have padding in the middle of rows, and some have several documents in each.
    """
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(1, VOCABULARY, (ROWS, LENGTH + 1), generator=generator)
    labels = tokens[:, 1:].clone()
    for row in range(ROWS):
        labels[row, : (row * 5) % LENGTH] = -100
    keep = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    if step % 2:
        keep[::3, 2:4] = False
    documents = positions = None
    if step % 3 == 2:
        ends = torch.rand(ROWS, LENGTH, generator=generator) < 0.2
        numbers, places = places_in(ends.numpy())
        documents, positions = torch.from_numpy(numbers), torch.from_numpy(places)
    return TokenBatch.of(tokens[:, :-1].contiguous(), labels, keep, documents, positions)


def rows_of(batch: TokenBatch, rows: slice) -> TokenBatch:
    parts = (batch.inputs_BL, batch.labels_BL, batch.keep_BL, batch.documents_BL, batch.positions_BL)
    return TokenBatch.of(*(None if part is None else part[rows] for part in parts))


def train(case: dict[str, Any], world: Group) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step."""
    dtype = case["dtype"]
    precision = Precision(dtype, dtype, dtype, dtype, dtype)
    lora = LoraOptions(4, 8.0, case.get("dropout", 0.0), "(?!lm_head).*") if case.get("lora") else None
    layout = {name: tuple(value) if isinstance(value, list) else value for name, value in case["layout"].items()}
    mesh = lay_out(ParallelOptions(**layout), world)
    model = compose(FAMILIES[case["family"]], precision, lora, mesh)
    for stage in model.stages:
        initialise(stage, 3, model.parts)
    model.train()
    shards = Shards(mesh.shards) if mesh.options.zero == 1 else None
    optimizer = NamedAdamW(model, OptimizerOptions((0.9, 0.95), 1e-6, 0.1), shards)
    step = TrainStep(model, optimizer, LossScaler(LossScaleOptions()), case.get("clip", 1.0), 0)
    curve = []
    for number in range(1, STEPS + 1):
        own = rows_of(batch_of(number), slice(mesh.place.data, None, mesh.options.data))
        micro_batches = own.split(len(own) // case["micro_batches"])
        result = step(number, micro_batches, 1e-3)
        assert result.grad_norm is not None
        curve.append((result.loss, result.grad_norm))
    return curve


def main() -> None:
    cases, output = (Path(argument) for argument in sys.argv[1:])
    world = join(torch.device("cpu"))
    curves = {}
    for name, case in json.loads(cases.read_text()).items():
        curves[name] = train(case, world)
        if world.is_first:
            output.write_text(json.dumps(curves))
    world.leave()


if __name__ == "__main__":
    main()
