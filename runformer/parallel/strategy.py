"""Strategy files: which part of every parameter a rank holds, as one small JSON file for each rank.

They are for people and for tools: checkpoints here describe themselves, so nothing needs them to be loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from runformer.config.layout import ParallelOptions
from runformer.config.task import LoraOptions, ModelOptions, Precision
from runformer.errors import RunformerError
from runformer.models.part import Part, Stage
from runformer.parallel.compose import outline_parts, stage_indices
from runformer.parallel.mesh import place_of, shard_of
from runformer.parallel.pipeline import stages_of

FORMAT_VERSION = 1


def write_strategies(
    folder: Path,
    ranks: Iterable[int],
    layout: ParallelOptions,
    options: ModelOptions,
    precision: Precision,
    lora: LoraOptions | None,
) -> None:
    """Write ``strategy_rank_<i>.json`` for some ranks of a layout; needs no other rank, no device and no weights.

    Raises:
        RunformerError: the folder cannot be written to.
    """

    @cache
    def parts(pipeline: int, tensor: int, shard: int) -> dict[str, Any]:
        return _parts(pipeline, tensor, shard, layout, options, precision, lora)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for rank in ranks:
            place = place_of(rank, layout)
            content = {
                "format": "runformer strategy",
                "format_version": FORMAT_VERSION,
                "rank": rank,
                "world_size": layout.devices,
                "layout": asdict(layout),
                "place": asdict(place),
                **parts(place.pipeline, place.tensor, shard_of(place, layout)),
            }
            path = folder / f"strategy_rank_{rank}.json"
            beside = folder / f".{path.name}.{os.getpid()}"
            beside.write_text(_text(content), encoding="utf-8")
            beside.replace(path)
    except OSError as error:
        hint = "choose another --output_dir"
        raise RunformerError(f"{folder}: cannot be written: {error.strerror}", hint=hint) from None


def _text(content: Mapping[str, Any]) -> str:
    """JSON with a line for each entry, and for each parameter."""
    parameters = [f"  {json.dumps(name)}: {json.dumps(part)}" for name, part in content["parameters"].items()]
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if key != "parameters"]
    return "{\n" + ",\n".join([*lines, ' "parameters": {\n' + ",\n".join(parameters) + "\n }"]) + "\n}\n"


def _parts(
    pipeline: int,
    tensor: int,
    shard: int,
    layout: ParallelOptions,
    options: ModelOptions,
    precision: Precision,
    lora: LoraOptions | None,
) -> dict[str, Any]:
    """The stages of a place in the layout, and its parameters."""
    all_stages = stages_of(options.num_layers, layout.pipeline, layout.chunks, layout.extra_layers)
    indices = stage_indices(pipeline, layout)
    parts = outline_parts(options, precision, lora, layout, [all_stages[index] for index in indices], tensor, shard)
    return {
        "stages": [{"index": index, **_stage(all_stages[index])} for index in indices],
        "parameters": {name: _part(parts[name]) for name in sorted(parts)},
    }


def _stage(stage: Stage) -> dict[str, Any]:
    return {"layers": [stage.layers.start, stage.layers.stop], "first": stage.first, "last": stage.last}


def _part(part: Part) -> dict[str, Any]:
    held = {"shape": part.shape, "dim": part.dim, "spans": part.spans, "owned": part.owned}
    return held if part.rows is None else {**held, "rows": part.rows}
