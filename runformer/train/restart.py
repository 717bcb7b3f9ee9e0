"""Going on by itself when a launcher starts the processes again."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from runformer.checkpoint import newest_checkpoint
from runformer.config.task import Task
from runformer.observe.pulse import VARIABLE
from runformer.train.saving import FOLDER

logger = logging.getLogger(__name__)

_RESTARTS = "TORCHELASTIC_RESTART_COUNT"


def resume_after_restart(task: Task) -> Task:
    """The task, going on from the run's newest complete checkpoint where our launcher has started it again.

    It does so only after a step was done, and before its first step a run sets an earlier one's checkpoints aside:
    those which are there are this run's own. Of other launchers that is not known; nor is it of a run that itself went
    on from a checkpoint elsewhere, which does that again.
    """
    count = os.environ.get(_RESTARTS, "")
    started_again = VARIABLE in os.environ and count.isdecimal() and int(count) > 0
    elsewhere = task.load.resume and task.load.path is not None
    if not started_again or elsewhere or task.train is None or task.train.save is None:
        return task
    newest = newest_checkpoint(task.output_dir / FOLDER)
    if newest is None:
        logger.info("started again, with no checkpoint of this run yet: from its beginning")
        return task
    logger.info("started again: going on from %s", newest)
    return replace(task, load=replace(task.load, path=None, resume=True, resume_name=None))
