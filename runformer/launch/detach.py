"""Leaving the terminal: the launch goes on in the background."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from pathlib import Path

_READY_SECONDS = 10


class Background:
    """The way back to the process that the user started, which waits until the launch can be asked about."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def ready(self) -> None:
        """Let the user's process end."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, b"\n")
        os.close(self._pipe)


def detach(output: Path) -> Background | None:
    """Fork into the background. None in the process that the user waits for, once the other one is ready.

    Args:
        output: the file that takes what the background process prints.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(writing)
        os.waitpid(child, 0)
        select.select([reading], [], [], _READY_SECONDS)
        os.close(reading)
        return None
    os.setsid()
    if os.fork():  # so that it is nobody's session leader, and no terminal can become its own
        os._exit(0)
    os.close(reading)
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, stream in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(descriptor, stream)
    os.close(nothing)
    os.close(file)
    return Background(writing)
