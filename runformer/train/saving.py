"""When a run's checkpoints are written, and what goes into them."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from runformer.checkpoint import CheckpointStore, Keep, TrainingState
from runformer.config.task import SaveOptions
from runformer.parallel.group import Group, alone

logger = logging.getLogger(__name__)

FOLDER = "checkpoint"
_WEIGHTS, _TRAINED = "checkpoint_network", "checkpoint_trainable"
FOLDERS = (FOLDER, _WEIGHTS, _TRAINED)
"""Where checkpoints of a run lie in its output directory."""


class Saver:
    """The checkpoints of a run.

    Where not all processes see one disk, or ``options.whole`` asks for it, rank 0 gets whole tensors and writes alone.

    Args:
        output_dir: they lie in its folder ``checkpoint``; weights by themselves in others beside that.
        options: when they are due, and which are kept.
        world: the processes of the run.
        trained: names of the parameters that are trained.
    """

    def __init__(self, output_dir: Path, options: SaveOptions, world: Group, trained: frozenset[str]) -> None:
        self._options, self._world, self._trained = options, world, trained
        self._last = time.monotonic()
        shared = options.whole or _is_shared(output_dir, world)
        if not shared:
            text = "not all machines see the same %s: rank 0 gathers every checkpoint and writes it where it is"
            logger.warning("%s; to resume, all of them need it", text % output_dir)
        self.whole = options.whole or not shared
        writers, keep = alone(world.device) if self.whole else world, Keep(options.keep, options.keep_minutes)
        folders = [FOLDER] + [_WEIGHTS] * options.weights + [_TRAINED] * options.trained
        self._stores = {
            folder: CheckpointStore(output_dir / folder, options.prefix, keep, writers, behind=options.behind)
            for folder in (folders if world.is_first or not self.whole else ())
        }

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after a step. All processes take part."""
        options = self._options
        if options.every_seconds is not None:  # by rank 0's clock
            return bool(self._world.gather(time.monotonic() - self._last >= options.every_seconds)[0])
        return options.every_steps is not None and step % options.every_steps == 0

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint, or begin to where training goes on meanwhile. All processes take part.

        Raises:
            CheckpointError: it cannot be written, or one that was begun before cannot.
        """
        self._last = time.monotonic()
        for folder, store in self._stores.items():
            content = self._content(folder, state)
            if self._options.behind:
                self._tell(store.finish())
                store.begin(content)
            else:
                self._tell(store.save(content))

    def poll(self) -> None:
        """See whether what was begun is on the disk. All processes take part, after every step.

        Raises:
            CheckpointError: it cannot be written.
        """
        for store in self._stores.values():
            self._tell(store.poll())

    def finish(self) -> None:
        """Wait for what was begun. All processes take part.

        Raises:
            CheckpointError: it cannot be written.
        """
        for store in self._stores.values():
            self._tell(store.finish())

    def _content(self, folder: str, state: TrainingState) -> TrainingState:
        if folder == FOLDER:
            return state
        wanted = [piece for piece in state.model if folder == _WEIGHTS or piece.name in self._trained]
        return replace(state, model=wanted, optimizer=())

    def _tell(self, path: Path | None) -> None:
        if path is not None and self._world.is_first:
            logger.info("saved %s", path)


def _is_shared(folder: Path, world: Group) -> bool:
    """Whether all processes see what rank 0 puts into a folder. All take part."""
    mark = folder / f".shared-{world.gather(os.getpid())[0]}"
    world.first(lambda: mark.touch())
    shared = not world.any(not mark.exists())
    world.first(lambda: mark.unlink())
    return shared
