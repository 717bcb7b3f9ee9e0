"""What must be the same on all machines of a job, in short values that can be compared."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import xxhash

from runformer.launch.command import Command
from runformer.launch.options import LaunchOptions

_PACKAGE = Path(__file__).resolve().parents[1]
_LARGEST_FILE = 16 << 20
"""A larger file on the command line is data, which each machine may hold in its own way."""


def versions() -> dict[str, str]:
    """Versions that numbers may hang on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "runformer"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def job_facts(options: LaunchOptions, command: Command) -> dict[str, str]:
    """The facts of a launch by name: numbers and versions as they are, of code and configuration a hash."""
    facts = {
        "WORKER_NUM": str(options.world_size),
        "LOCAL_WORKER": str(options.local_world_size),
        "the command": str(command),
        "the code of runformer": hash_files(sorted(_PACKAGE.rglob("*.py"))),
    }
    facts |= {f"the version of {name}": value for name, value in versions().items()}
    for word in command.words:
        path = Path(word)
        if path.is_file() and path.stat().st_size <= _LARGEST_FILE:
            facts[f"the file {word}"] = hash_files([path])
    return facts


def hash_files(paths: list[Path]) -> str:
    """One hash over the names and contents of files, 16 hexadecimal digits."""
    digest = xxhash.xxh3_64()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
