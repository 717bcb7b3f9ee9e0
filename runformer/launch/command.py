"""What a worker runs: a Python script in a forked process, or a program of its own."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from runformer.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[2]
"""The folder that holds the package, and in a checkout ``run_mindformer.py``."""


@dataclass(frozen=True, slots=True)
class Command:
    """The words of a command, and the script that a fork can run; None where a program of its own must be started."""

    words: tuple[str, ...]
    script: Path | None

    def argv(self) -> list[str]:
        """The command as a program to execute: of a script that is this Python."""
        if self.script is None:
            return list(self.words)
        return [sys.executable, "-m", "runformer.launch.worker", str(self.script), *self.words[1:]]

    def __str__(self) -> str:
        return shlex.join(self.words)


def split_order(order: str) -> tuple[str, ...]:
    """The words of a command given as one string, split as a shell splits them; nothing in it is expanded.

    Raises:
        UsageError: a quote is not closed, or there is no word.
    """
    try:
        words = tuple(shlex.split(order))
    except ValueError as error:
        raise UsageError(f"the command {order!r} cannot be split into words: {error}") from error
    if not words:
        raise UsageError("there is no command to run", hint='give it as "run_mindformer.py --config …"')
    return words


def find_command(words: tuple[str, ...]) -> Command:
    """The command that these words mean.

    A first word that ends in ``.py`` is a script: of the current folder, else of the one that holds this package.
    Anything else (``python``, ``pytest``, a path) is a program.

    Raises:
        UsageError: the script is in neither, or there is no such program.
    """
    first = words[0]
    if not first.endswith(".py"):
        if shutil.which(first) is None:
            raise UsageError(f"{first}: there is no such program, and a script's name ends in .py")
        return Command(words, None)
    for folder in (Path.cwd(), REPOSITORY):
        if (folder / first).is_file():
            return Command(words, folder / first)
    raise UsageError(f"{first}: there is no such script here ({Path.cwd()}), nor in {REPOSITORY}")
