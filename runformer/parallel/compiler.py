"""Whether ``torch.compile`` works here."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager, nullcontext

import torch

from runformer.config.task import Task

logger = logging.getLogger(__name__)


def should_compile(task: Task, device: torch.device) -> bool:
    """Whether the task asks for compiled code on this device, and gets it.

    Where it asks and does not get it, that is said: ``mode: 0`` in a YAML means accelerators only, and there may be no
    working compiler (C++ for a CPU, Triton for a GPU).
    """
    if task.compile == "accelerator" and device.type == "cpu":
        logger.info("context.mode 0: running eagerly, since compiling rarely pays on a CPU; --mode 0 compiles here too")
        return False
    return task.compile != "never" and can_compile(device)


def can_compile(device: torch.device) -> bool:
    """Whether compiled code runs on this device; where not, the reason is logged."""
    try:
        torch.compile(_add_one)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a missing or broken compiler raises, running eagerly is right
        reason = str(error).strip().partition("\n")[0]
        logger.warning("running eagerly, since torch.compile does not work here: %s", reason)
        return False
    return True


def eagerly() -> AbstractContextManager[object]:
    """In it what was compiled runs eagerly, and the compiler remembers nothing of the shapes that it sees."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing the compiler takes a second
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def _add_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1
