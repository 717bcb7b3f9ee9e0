"""Going on by itself when a launcher starts the processes again."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from runformer.checkpoint import CheckpointStore
from runformer.config.task import Task

logger = logging.getLogger(__name__)

_RESTARTS = "TORCHELASTIC_RESTART_COUNT"


def resume_after_restart(task: Task) -> Task:
    """The task, going on from the run's newest complete checkpoint where a launcher has started it again.

    The first attempt has set an earlier run's checkpoints aside, so that those which are there are this run's own.
    """
    count = os.environ.get(_RESTARTS, "")
    if not count.isdecimal() or int(count) == 0 or task.train is None or task.train.save is None:
        return task
    store = CheckpointStore(task.output_dir / "checkpoint", task.train.save.prefix, task.train.save.keep)
    newest = store.newest()
    if newest is None:
        logger.info("started again, with no checkpoint of this run yet: from its beginning")
        return task
    logger.info("started again: going on from %s", newest)
    return replace(task, load=replace(task.load, path=None, resume=True, resume_name=None))
