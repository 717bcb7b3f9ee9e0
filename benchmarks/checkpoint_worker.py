"""One process of ``checkpoints.py``: writes a checkpoint as four ranks would, or reads one rank's part of it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from common import COMMON_SHAPE, SHAPES, peak_rss_bytes

from runformer.checkpoint import HeldState, TrainingState, open_checkpoint
from runformer.checkpoint.pieces import Piece
from runformer.checkpoint.share import Writer
from runformer.config.layout import ParallelOptions
from runformer.config.task import ModelOptions, Precision
from runformer.models.families import options_from_config
from runformer.models.part import Box, Part
from runformer.parallel.compose import outline_parts, stage_indices
from runformer.parallel.mesh import place_of, shard_of
from runformer.parallel.pipeline import stages_of

MOMENTS = ("exp_avg", "exp_avg_sq")
LAYOUTS = {
    "tensor 1": ParallelOptions(),
    "tensor 2": ParallelOptions(tensor=2),
    "tensor 4": ParallelOptions(tensor=4),
    "pipeline 4": ParallelOptions(pipeline=4),
    "data 4, ZeRO 3": ParallelOptions(data=4, zero=3),
}


def options_of(shape: Mapping[str, Any]) -> ModelOptions:
    return options_from_config({"model_type": "llama", **shape, **COMMON_SHAPE}, "shape")


def parts_of(layout: ParallelOptions, rank: int) -> dict[str, Part]:
    options, place = options_of(SHAPES["SmolLM2-135M"]), place_of(rank, layout)
    stages = stages_of(options.num_layers, layout.pipeline, layout.chunks, layout.extra_layers)
    own = [stages[index] for index in stage_indices(place.pipeline, layout)]
    return outline_parts(options, Precision(), None, layout, own, place.tensor, shard_of(place, layout))


def write(folder: Path) -> None:
    folder.mkdir(parents=True)
    layout, first = LAYOUTS["tensor 4"], None
    for rank in range(layout.devices):
        model, state = [], []
        for name, part in parts_of(layout, rank).items():
            for box, piece in part.pieces(torch.randn(part.held_shape)):
                model.append(Piece(name, part.shape, box, piece))
                state += [Piece(f"{moment}.{name}", part.shape, box, piece) for moment in MOMENTS]
        manifest = Writer("x", rank, layout.devices).write(
            folder, TrainingState(model, state, {"step": 1}), lambda: None
        )
        first = first or manifest
    assert first is not None
    Writer("x", 0, layout.devices).put_together(folder, first)


def read(folder: Path, layout: ParallelOptions, rank: int, gate: Path) -> None:
    parts = parts_of(layout, rank)
    keys = [f"{kind}{name}" for kind in ("", *(f"{moment}." for moment in MOMENTS)) for name in parts]
    targets = {
        key: torch.zeros(parts[key.removeprefix("exp_avg.").removeprefix("exp_avg_sq.")].held_shape) for key in keys
    }
    before = peak_rss_bytes()
    size = sum(target.nbytes for target in targets.values())
    print("here", flush=True)
    while not gate.exists():
        time.sleep(0.01)
    began = time.perf_counter()
    checkpoint = open_checkpoint(folder)
    state = HeldState(checkpoint, parts)
    for key, target in targets.items():
        if key in parts:
            for box, here in parts[key].boxes(Box.of(tuple(target.shape))):
                checkpoint.fill(key, box, target[here.place])
        else:
            state.fill(key, target)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "bytes": size, "peak": peak_rss_bytes() - before + size}))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        torch.set_num_threads(1)
        read(Path(sys.argv[2]), LAYOUTS[sys.argv[3]], int(sys.argv[4]), Path(sys.argv[5]))
