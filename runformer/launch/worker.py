"""What happens in a worker's process before and after its script.

A forked worker runs the script here; for a program of its own (and with ``--fork_server False``) the script is run by
``python -m runformer.launch.worker SCRIPT ARGS…``, which ends the same way.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import io
import os
import runpy
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, NoReturn

from runformer.observe.error_file import record_error

if TYPE_CHECKING:
    from runformer.launch.workers import WorkerStart

STACK_SIGNAL = signal.SIGRTMIN + 1
"""On it a worker writes its stack to the file named by ``STACKS_VARIABLE``."""

STACKS_VARIABLE = "RUNFORMER_STACKS"

_KEEPS_EXIT_HANDLERS = (0, 75)
"""Exit codes of a good end, after which exit handlers run. After a failure they could wait for ranks that are gone."""


def run_worker(start: WorkerStart) -> NoReturn:
    """Turn this process, just forked, into a worker."""
    os.setsid()  # a group that can be signalled as one, and out of reach of the terminal
    _redirect(start.output)
    if start.cores is not None:
        os.sched_setaffinity(0, start.cores)
    os.environ.update(start.environment)
    os.environ[STACKS_VARIABLE] = start.stacks
    if not start.forked:
        _execute(start.argv)
    run_script(start.argv[0], start.argv[1:])


def _redirect(output: str) -> None:
    """Send both standard streams to a file, line by line, and read from nothing."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, stream in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(descriptor, stream)
    os.close(file)
    os.close(nothing)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _line_writer(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _line_writer(2)  # type: ignore[misc]


def _line_writer(descriptor: int) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", errors="backslashreplace", line_buffering=True)


def _execute(argv: tuple[str, ...]) -> NoReturn:
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"error: {argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)


def run_script(path: str, arguments: tuple[str, ...]) -> NoReturn:
    """Run a script as ``__main__`` and end this process with its exit code.

    An exception leaves its traceback on standard error, and what the agent needs of it in the error file.
    """
    faulthandler.enable()
    if stacks := os.environ.get(STACKS_VARIABLE):
        faulthandler.register(STACK_SIGNAL, file=open(stacks, "a"), all_threads=True, chain=False)  # noqa: PTH123, SIM115
    sys.argv = [path, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120 - a string, as Python has there
    _exit(_run(path))


def _run(path: str) -> int:
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as error:
        return _exit_code(error)
    except BaseException as error:
        record_error(error)
        _print_traceback(error, path)
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _print_traceback(error: BaseException, path: str) -> None:
    """As Python would, without the frames that started the script."""
    place = error.__traceback__
    while place is not None and place.tb_frame.f_code.co_filename != path:
        place = place.tb_next
    traceback.print_exception(error.with_traceback(place) if place is not None else error)


def _exit(code: int) -> NoReturn:
    try:
        if code in _KEEPS_EXIT_HANDLERS:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    run_script(sys.argv[1], tuple(sys.argv[2:]))
