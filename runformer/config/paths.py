"""Paths that a task names: where they point, and which are only the placeholders of a published recipe."""

from __future__ import annotations

import re
from pathlib import Path

from runformer.config.problems import Report, cut

_PLACEHOLDER = re.compile(r"^(\./)?/?path[/_]|/\.{2,3}/|[{}]|/path/|^/home/common/|^your[_/]", re.IGNORECASE)


def absolute(name: str) -> Path:
    """A path as the user means it: relative to the current directory, ``~`` being the home folder."""
    try:
        return Path.cwd() / Path(name).expanduser()
    except RuntimeError:  # "~somebody" who has no home
        return Path.cwd() / name


def is_there(path: Path) -> bool:
    """Whether a file or folder can be seen; a path that no system could have is not there either."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_placeholder(name: str) -> bool:
    """Whether a path is like ``/path/to/vocab.json`` or ``/{path}/x.model``, which recipes ask the user to replace."""
    return _PLACEHOLDER.search(name) is not None


def display(path: Path) -> str:
    """A path as messages show it: relative to the current directory where it lies inside."""
    whole = Path.cwd() / path
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)


def by_flag(flag: str, text: str = " (--{} PATH gives another)") -> str:
    """``text`` with the flag that would help; nothing for an item of a list, into which no flag leads."""
    return "" if "[" in flag else text.format(flag)


def existing(report: Report, key: str, name: str, *, flag: str) -> Path | None:
    """The absolute path of a file or folder that must be there; in a plan None, and the key is to be filled in.

    Raises:
        ConfigError: naming the path, the key that gave it, and the flag that gives another.
    """
    path = absolute(name)
    if is_there(path):
        return path
    advice = "replace this placeholder" if is_placeholder(name) else f"there is nothing at {cut(display(path))}"
    text = f"is {cut(name)!r}: {advice}{by_flag(flag)}"
    if not report.planning:
        raise report.failure(key, text)
    report.fill_in(key, text)
    return None
