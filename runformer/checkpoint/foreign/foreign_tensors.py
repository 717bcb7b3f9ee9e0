"""Tensors of files from Hugging Face or MindFormers, under our names."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from runformer.checkpoint.adapters import from_peft
from runformer.checkpoint.tensors import ArrayFile, NamedTensors
from runformer.config.task import ModelOptions
from runformer.errors import CheckpointError
from runformer.models.names import from_mindformers, fused_parts
from runformer.models.part import Box

MOMENTS = {"adam_m.": "exp_avg.", "adam_v.": "exp_avg_sq."}
"""Adam's first and second moment: what MindFormers puts before a parameter's name, and what we do."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: under ``key`` in ``file``; ``part`` is its number among fused ones, None for a whole one."""

    file: ArrayFile
    key: str
    part: int | None


class ForeignTensors(NamedTensors):
    """The tensors of some files by our names, each read when asked for.

    MindFormers' names are translated, its moments (``adam_m.``, ``adam_v.``) too; fused tensors appear as their
    parts. Names that are nobody's stay as they are.

    Args:
        files: the files, no two of which may hold a tensor of one name.
        options: the model's shape, by whose heads fused tensors are cut.

    Raises:
        CheckpointError: two files hold the same tensor.
    """

    def __init__(self, files: Iterable[ArrayFile], options: ModelOptions) -> None:
        self._options = options
        self._places: dict[str, _Place] = {}
        super().__init__(self._places)
        for file in files:
            for key in file.names:
                self._add(file, key)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor; reads no data."""
        place = self._places[name]
        shape = place.file.shape(place.key)
        if place.part is None:
            return shape
        groups, shares, unit = self._cuts(place, shape)
        return (groups * shares[place.part] * unit, *shape[1:])

    def kind(self, name: str) -> str:
        """The type of one tensor; reads no data."""
        place = self._places[name]
        return place.file.dtype(place.key)

    def origin(self, name: str) -> str:
        """The file that holds a tensor, and its name there."""
        place = self._places[name]
        return f"{place.file.path} ({place.key})"

    def read(self, name: str, box: Box) -> Tensor:
        """A box of one tensor, on the CPU."""
        place = self._places[name]
        if place.part is None:
            return place.file.read(place.key, box)
        tensor = place.file.read(place.key, Box.of(place.file.shape(place.key)))
        groups, shares, unit = self._cuts(place, tuple(tensor.shape))
        parts = tensor.unflatten(0, (groups, sum(shares) * unit)).split([share * unit for share in shares], dim=1)
        part: Tensor = parts[place.part].flatten(0, 1)[box.place]
        return part

    def _add(self, file: ArrayFile, key: str) -> None:
        prefix = next((prefix for prefix in MOMENTS if key.startswith(prefix)), "")
        parameter, ours = key.removeprefix(prefix), MOMENTS.get(prefix, "")
        parts = fused_parts(parameter)
        if parts is None:
            self._place(ours + (from_mindformers(parameter) or from_peft(parameter)), _Place(file, key, None))
        for number, part in enumerate(parts or ()):
            self._place(ours + part, _Place(file, key, number))

    def _place(self, name: str, place: _Place) -> None:
        other = self._places.setdefault(name, place)
        if other is not place:
            raise CheckpointError(
                f"{place.file.path}: the tensor {place.key} is also in {other.file.path} as {other.key}",
                hint="several sets of weights lie here: let --load_checkpoint name the one file that is meant",
            )

    def _cuts(self, place: _Place, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...], int]:
        """How a fused tensor repeats along its rows: the number of groups, each part's share of one, rows a share.

        ``w_qkv``: for each key-value head its query heads, its key and its value; ``w_gate_hidden``: a row of each.
        """
        options, rows = self._options, math.prod(shape[:1])
        if "w_qkv" in place.key:
            groups, unit = options.num_kv_heads, options.head_dim
            shares: tuple[int, ...] = (options.num_heads // groups, 1, 1)
        else:
            groups, unit, shares = options.intermediate_size, 1, (1, 1)
        if rows != groups * sum(shares) * unit:
            raise CheckpointError(
                f"{place.file.path}: the fused tensor {place.key} has {rows} rows, "
                f"the model's parts together {groups * sum(shares) * unit}",
                hint="num_heads, n_kv_heads or intermediate_size of model.model_config does not fit these weights",
            )
        return groups, shares, unit
