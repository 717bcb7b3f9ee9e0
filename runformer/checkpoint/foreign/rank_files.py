"""The files of all ranks of a run of MindFormers, put together into whole tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from runformer.checkpoint.foreign.foreign_tensors import MOMENTS
from runformer.checkpoint.foreign.mindspore_strategy import Strategy
from runformer.checkpoint.tensors import TYPES, ArrayFile
from runformer.errors import CheckpointError
from runformer.models.part import Box


@dataclass(frozen=True, slots=True)
class _Slice:
    box: Box
    file: ArrayFile


class RankFiles:
    """Tensors that ranks have slices of, read like those of one file.

    What no strategy speaks of is whole wherever it is. A slice that several ranks have is read from the first of them.

    Args:
        path: the folder around the ranks' own.
        files: of each rank.
        strategies: of each rank, or one of all under None; none where nothing is cut.

    Raises:
        CheckpointError: a strategy does not fit the files.
    """

    def __init__(
        self, path: Path, files: Mapping[int, Sequence[ArrayFile]], strategies: Mapping[int | None, Strategy]
    ) -> None:
        self.path = path
        self._slices: dict[str, dict[Box, _Slice]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for rank in sorted(files):
            strategy = strategies.get(rank, strategies.get(None, {}))
            for file in files[rank]:
                for name in file.names:
                    self._add(rank, file, name, strategy)
        self.names = tuple(self._slices)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """The type of one tensor, as safetensors calls it."""
        return next(iter(self._slices[name].values())).file.dtype(name)

    def read(self, name: str, box: Box) -> Tensor:
        """A box of one tensor, on the CPU.

        Raises:
            CheckpointError: no rank has some of it.
        """
        slices = self._slices[name]
        if Box.of(self.shape(name)) in slices:
            return slices[Box.of(self.shape(name))].file.read(name, box)
        out, found = torch.empty(box.shape, dtype=TYPES[self.dtype(name)]), 0
        for part in slices.values():
            common = part.box.meet(box)
            if common is not None:
                out[common.inside(box).place] = part.file.read(name, common.inside(part.box))
                found += common.numel
        if found != box.numel:
            hint = "are the folders of all ranks here, and is this the strategy of this checkpoint?"
            raise CheckpointError(
                f"{self.path}: the ranks' files hold {found} of {box.numel} elements of {name}", hint=hint
            )
        return out

    def _add(self, rank: int, file: ArrayFile, name: str, strategy: Strategy) -> None:
        shape = file.shape(name)
        # Moments are cut like their parameter where no strategy says else.
        layout = strategy.get(name) or strategy.get(name.partition(".")[2] if name.startswith(tuple(MOMENTS)) else name)
        try:
            whole = shape if layout is None else _product(shape, layout.cuts(len(shape)))
            box = Box.of(shape) if layout is None else layout.box(rank, shape)
        except ValueError as error:
            raise CheckpointError(
                f"{file.path}: {name}: {error}", hint="is it the strategy of this checkpoint?"
            ) from None
        if self._shapes.setdefault(name, whole) != whole:
            raise CheckpointError(
                f"{file.path}: {name} is of {whole}, and of {self._shapes[name]} on another rank",
                hint="the tensors are cut: give the run's strategy files with --src_strategy_path_or_dir",
            )
        self._slices.setdefault(name, {}).setdefault(box, _Slice(box, file))


def _product(shape: tuple[int, ...], counts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size * count for size, count in zip(shape, counts, strict=True))
