"""MindSpore's strategy files: how a parallel run has cut its parameters over ranks.

Of each parameter they hold a device matrix, for each dimension the axis of that matrix along which it is cut (counted
from the last; -1: not cut), and into how many parts the optimizer cuts the first dimension once more. As protocol
buffers: ``ParallelStrategyMap { parallel_layout_item = 3 }``, ``ParallelLayoutItem { param_name = 1; parallel_layouts =
2 }``, ``ParallelLayouts { dev_matrix = 1 { dim }; tensor_map = 2 { dim }; opt_weight_shard_step = 6;
opt_weight_shard_size = 7 }``; or as JSON with the same names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runformer.checkpoint.foreign.protobuf import Field, fields, numbers, text
from runformer.errors import CheckpointError
from runformer.models.part import Box

_LAYOUTS, _NAME, _LAYOUT = 3, 1, 2
_FIELDS = {1: "dev_matrix", 2: "tensor_map", 6: "opt_weight_shard_step", 7: "opt_weight_shard_size"}
_STAGE = re.compile(r"stage-?\d+-")  # of files that were merged over pipeline stages
_RANK_FILE = re.compile(r"(?:.*_)?rank_?(\d+)\.(?:ckpt|json)")
_LARGEST = 1 << 20  # devices


@dataclass(frozen=True, slots=True)
class SliceLayout:
    """How one parameter is cut: see above. ``shard_size`` 0: the optimizer does not cut; -1: over all that are left."""

    device_matrix: tuple[int, ...]
    tensor_map: tuple[int, ...]
    shard_step: int = 0
    shard_size: int = 0

    def cuts(self, dimensions: int) -> tuple[int, ...]:
        """Into how many parts each dimension is cut.

        Raises:
            ValueError: the parameter has other dimensions.
        """
        if len(self.tensor_map) != dimensions:
            raise ValueError(f"{len(self.tensor_map)} dimensions in the strategy, {dimensions} in the file")
        counts = [1 if axis < 0 else self.device_matrix[self._axis(axis)] for axis in self.tensor_map]
        if counts:
            counts[0] *= self._shards
        return tuple(counts)

    def box(self, rank: int, shape: tuple[int, ...]) -> Box:
        """Where in the whole a rank's slice of a shape lies.

        Raises:
            ValueError: as ``cuts``.
        """
        self.cuts(len(shape))
        places: list[int] = []
        number = rank % math.prod(self.device_matrix)
        for size in reversed(self.device_matrix):
            number, place = divmod(number, size)
            places.insert(0, place)
        at = [0 if axis < 0 else places[self._axis(axis)] for axis in self.tensor_map]
        if at and self._shards > 1:
            at[0] = at[0] * self._shards + rank // max(1, self.shard_step) % self._shards
        return Box(tuple(place * size for place, size in zip(at, shape, strict=True)), shape)

    @property
    def _shards(self) -> int:
        if self.shard_size >= 0:
            return max(1, self.shard_size)
        used = {self._axis(axis) for axis in self.tensor_map if axis >= 0}
        return math.prod(size for axis, size in enumerate(self.device_matrix) if axis not in used)

    def _axis(self, number: int) -> int:
        return len(self.device_matrix) - 1 - number


Strategy = Mapping[str, SliceLayout]
"""Layouts by parameters' names."""


def read_strategies(path: Path) -> dict[int | None, Strategy]:
    """The strategies of a file or a folder by rank; None: of any rank.

    Raises:
        CheckpointError: there is none, or one is damaged.
    """
    if path.is_file():
        return {None: read_strategy(path)}
    found: dict[int | None, Strategy] = {}
    for file in sorted(path.glob("*")):
        match = _RANK_FILE.fullmatch(file.name)
        if match and file.is_file():
            found[int(match[1])] = read_strategy(file)
    merged = sorted(file for file in path.glob("*") if "merged" in file.name and file.suffix in (".ckpt", ".json"))
    if not found and merged:
        found[None] = read_strategy(merged[0])
    if not found:
        hint = "src_strategy_path_or_dir names a folder with ckpt_strategy_rank_<i>.ckpt, or one merged file"
        raise CheckpointError(f"{path}: no strategy files of MindSpore here", hint=hint)
    return found


def read_strategy(path: Path) -> Strategy:
    """One strategy file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}", hint="check the path") from None
    items = _from_json(content, path) if path.suffix == ".json" else _from_protobuf(content, str(path))
    strategy: dict[str, SliceLayout] = {}
    for name, item in items:
        try:
            strategy[_STAGE.sub("", name, count=1)] = _layout(item)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise CheckpointError(f"{path}: the layout of {name} is damaged: {error}", hint="copy it again") from None
    return strategy


def _layout(item: Mapping[str, Any]) -> SliceLayout:
    devices, axes = tuple(map(int, item["dev_matrix"])), tuple(map(int, item["tensor_map"]))
    if min(devices, default=1) < 1 or math.prod(devices) > _LARGEST:
        raise ValueError(f"a device matrix of {devices}")
    if not all(-1 <= axis < len(devices) for axis in axes):
        raise ValueError(f"axes {axes} of {devices}")
    step, size = int(item.get("opt_weight_shard_step", 0)), int(item.get("opt_weight_shard_size", 0))
    if not (0 <= step <= _LARGEST and -1 <= size <= _LARGEST):
        raise ValueError(f"an optimizer's shard of step {step} and size {size}")
    return SliceLayout(devices, axes, step, size)


def _from_json(content: bytes, path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    try:
        items: Mapping[str, Any] = json.loads(content)["parallel_layout_item"]
        return list(items.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a strategy file: {error!r}", hint="copy it again") from None


def _from_protobuf(content: bytes, where: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for item in fields(content, 0, len(content), where):
        if item.number == _LAYOUTS and item.is_bytes:
            name, layout = "", {}
            for field in fields(content, item.begin, item.end, where):
                if field.number == _NAME:
                    name = text(content, field, where)
                elif field.number == _LAYOUT and field.is_bytes:
                    layout = _layout_fields(content, field, where)
            yield name, layout


def _layout_fields(content: bytes, layout: Field, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {"dev_matrix": [], "tensor_map": []}
    for field in fields(content, layout.begin, layout.end, where):
        key = _FIELDS.get(field.number)
        if key in ("dev_matrix", "tensor_map") and field.is_bytes:
            for dim in fields(content, field.begin, field.end, where):
                found[key] += numbers(content, dim, where)
        elif key is not None:
            (found[key],) = numbers(content, field, where)[:1] or [0]
    return found
