"""``--only_save_strategy True``: the strategy files of a run that is not started."""

from __future__ import annotations

from pathlib import Path

from runformer.config.launched import launched
from runformer.config.task import Task
from runformer.models.families import resolve_options
from runformer.parallel.strategy import write_strategies


def save_strategies(task: Task) -> Path:
    """Write what each rank of a task would hold of the model; the folder of the files.

    A process that a launcher started writes its own rank's file, any other one those of all ranks.

    Raises:
        ConfigError: the model's shape is not known, as its folder has no ``config.json``.
        RunformerError: the folder cannot be written to.
    """
    place = launched(planning=True)
    ranks = range(task.parallel.devices) if place is None else [place.rank]
    folder = task.output_dir / "strategy"
    model = task.model
    write_strategies(folder, ranks, task.parallel, resolve_options(model), model.precision, model.lora)
    return folder
