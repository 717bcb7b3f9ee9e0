"""``run_mindformer.py`` with one planted fault, told by the environment.

``FAULT``, ``FAULT_PHASE`` and ``FAULT_RANK`` say what happens, where in a training run, and to which rank; the moment is written
to the file ``FAULT_STAMP``.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAULTS = ("raise", "exit3", "sigkill", "sigsegv", "sigstop", "sigterm_ignored", "out_of_memory", "deadlock", "stuck_in_c")
PHASES = ("import", "init", "data", "forward", "collective", "save", "exit")
HANGS = ("deadlock", "stuck_in_c")

_CALLS = {"data": 12, "forward": 8, "collective": 25, "save": 2}
"""At which call of a phase's function the fault comes: in the middle of the run, after a checkpoint."""


def hurt() -> None:
    """The fault."""
    fault = os.environ["FAULT"]
    Path(os.environ["FAULT_STAMP"]).write_text(repr(time.time()))
    if fault in ("raise", "sigterm_ignored"):
        raise ValueError("the planted fault")
    if fault == "exit3":
        sys.exit(3)
    if fault == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "sigsegv":
        ctypes.string_at(0)
    if fault == "sigstop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "out_of_memory":
        run_out_of_memory()
    if fault == "deadlock":
        threading.Event().wait()
    if fault == "stuck_in_c":
        ctypes.PyDLL(None).sleep(3600)  # unlike CDLL it keeps the interpreter's lock


def run_out_of_memory() -> None:
    import torch

    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
    torch.zeros(2**32)


def at_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with the fault in place of its call with that number (from 1)."""
    calls = 0

    def called(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            hurt()
        return function(*arguments, **named)

    return called


def plant(phase: str) -> None:
    """Put the fault into a phase of the run."""
    import torch.distributed

    from runformer.data.dataset import TokenDataset
    from runformer.models.decoder import CausalLM
    from runformer.parallel import group
    from runformer.train import run

    places: dict[str, tuple[Any, str]] = {
        "init": (group, "_connect"),
        "data": (TokenDataset, "rows"),
        "forward": (CausalLM, "forward"),
        "collective": (torch.distributed, "all_reduce"),
        "save": (run, "save"),
        "exit": (group.Group, "leave"),
    }
    owner, name = places[phase]
    setattr(owner, name, at_call(_CALLS.get(phase, 1), getattr(owner, name)))


def ignore_sigterm() -> None:
    """What the other ranks do where the fault says so: training's own handler must not come either."""
    from runformer.train import stop

    stop._SIGNALS = (signal.SIGUSR1,)  # type: ignore[assignment]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def main() -> int:
    """Plant the fault, then do what ``run_mindformer.py`` does."""
    ours = int(os.environ["RANK"]) == int(os.environ["FAULT_RANK"])
    phase = os.environ["FAULT_PHASE"]
    if not ours and os.environ["FAULT"] == "sigterm_ignored":
        ignore_sigterm()
    if ours and phase == "import":
        hurt()
    elif ours:
        plant(phase)
    from runformer.cli.main import main as run_mindformer

    return run_mindformer(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
