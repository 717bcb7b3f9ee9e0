"""How checkpoints lie in their folder, and how one comes to stand there whole.

A checkpoint is a directory ``iteration_<step>``, eight digits or more. It is written under a hidden name
beside its place, reaches the disk, and takes its place by one rename; so whatever carries the plain
name is complete. Hidden names say what a directory is, and which process made it::

    .iteration_00000016.tmp-<pid>    being written, or being removed
    .iteration_00000016.old-<pid>    complete; steps aside for a new one of the same step
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

MANIFEST = "metadata.json"
COMMON = "common.json"

_CHECKPOINT = re.compile(r"iteration_([0-9]{8,})")
_HIDDEN = re.compile(r"\.(iteration_[0-9]{8,})\.(tmp|old)-([0-9]+)")


def directory_name(step: int) -> str:
    """``iteration_00000016`` for step 16."""
    return f"iteration_{step:08d}"


def complete_checkpoints(root: Path) -> dict[int, Path]:
    """Every complete checkpoint in ``root`` by step, lowest first; none where there is no such folder.

    One that stepped aside counts while its place is empty, which is so only if its process died between
    two renames.
    """
    found: dict[int, Path] = {}
    entries = sorted(root.iterdir()) if root.is_dir() else []
    for path in entries:  # hidden names sort first, so plain ones replace them
        aside = _HIDDEN.fullmatch(path.name)
        match = _CHECKPOINT.fullmatch(aside[1] if aside and aside[2] == "old" else path.name)
        if match and path.is_dir() and (path / MANIFEST).is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def newest_checkpoint(root: Path) -> Path | None:
    """The complete checkpoint of the highest step."""
    return next(reversed(complete_checkpoints(root).values()), None)


def staged_path(final: Path, pid: int) -> Path:
    """Where the process ``pid`` and those that save with it fill a new directory, which will stand at ``final``."""
    return _hidden(final, "tmp", pid)


@contextlib.contextmanager
def staged_directory(final: Path) -> Iterator[Path]:
    """A new directory to fill, which takes the place ``final`` when the block ends without an error.

    On an error or an interrupt it is removed and ``final`` is as before. The files in it must have
    reached the disk when the block ends; the directories do so here.
    """
    staged = staged_path(final, os.getpid())
    try:
        staged.mkdir()
        yield staged
        put_in_place(staged, final)
    except BaseException:
        discard(staged)
        raise


def put_in_place(staged: Path, final: Path) -> None:
    """Let a directory whose files have reached the disk take its place; where that fails, all is as before."""
    sync_directory(staged)
    if final.exists():
        _replace(staged, final)
    else:
        staged.rename(final)
    sync_directory(final.parent)


def discard(staged: Path) -> None:
    """Remove a directory that is not to take its place."""
    shutil.rmtree(staged, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Remove a checkpoint; hidden first, so that no half of it is ever taken for a whole."""
    doomed = _hidden(path, "tmp", os.getpid())
    path.rename(doomed)
    shutil.rmtree(doomed)


def clear_leftovers(root: Path) -> None:
    """Tidy what processes left in ``root`` that were killed while saving."""
    for path in sorted(root.iterdir()):
        match = _HIDDEN.fullmatch(path.name)
        if match is None or _is_alive(int(match[3])):
            continue
        place = root / match[1]
        if match[2] == "old" and not place.exists():
            path.rename(place)
        else:
            shutil.rmtree(path, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Bring a file that another library has written to the disk."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Bring a directory's entries to the disk: without it a rename may be lost with the power."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(staged: Path, final: Path) -> None:
    # No call replaces a full directory by another, so for a moment the older one stands under its hidden name.
    aside = _hidden(final, "old", os.getpid())
    try:
        final.rename(aside)
        staged.rename(final)
    except BaseException:
        if aside.exists() and not final.exists():
            aside.rename(final)
        raise
    with contextlib.suppress(OSError):  # the new one is in its place; the next save tidies up
        remove_directory(aside)


def _hidden(path: Path, kind: str, pid: int) -> Path:
    hidden = _HIDDEN.fullmatch(path.name)
    return path.with_name(f".{hidden[1] if hidden else path.name}.{kind}-{pid}")


def _is_alive(pid: int) -> bool:
    # This process saves one checkpoint at a time: what carries its number is from another of the same number.
    return pid != os.getpid() and psutil.pid_exists(pid)
