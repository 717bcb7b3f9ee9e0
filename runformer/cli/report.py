"""How a command ends: an exit code, and for an error one message that a person can act on."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from runformer.errors import Preempted, RunformerError
from runformer.observe.error_file import record_error

INTERRUPTED = 130
"""The shell's code for a program ended by Ctrl-C: 128 + SIGINT."""

NO_READER = 141
"""Likewise for a program whose output nobody reads any more: 128 + SIGPIPE."""


@dataclass
class Outcome:
    """The exit code of a command."""

    exit_code: int = 0


@contextmanager
def reporting_errors(*, debug: bool) -> Iterator[Outcome]:
    """Run a command's body; print what goes wrong on standard error and keep the exit code for it.

    With ``debug`` errors pass through, for their tracebacks.
    """
    outcome = Outcome()
    try:
        yield outcome
    except Preempted as end:
        print(end.message, file=sys.stderr)
        outcome.exit_code = end.exit_code
    except RunformerError as error:
        record_error(error, message=str(error.message))
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        outcome.exit_code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted; checkpoints already saved are as they were", file=sys.stderr)
        outcome.exit_code = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output, such as head(1), has seen enough. Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        outcome.exit_code = NO_READER
    except Exception as error:
        record_error(error)
        if debug:
            raise
        print(_unexpected(error), file=sys.stderr)
        outcome.exit_code = 1


def _unexpected(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error}".strip()
    hint = "this is not a known kind of error; add --debug to see where it comes from"
    return f"error: {text} ({last.filename}:{last.lineno})\n  hint: {hint}"
