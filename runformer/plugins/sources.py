"""Which Python files of a folder are plug-ins, found by reading them; and whether others could have written them."""

from __future__ import annotations

import ast
import importlib.util
import re
import stat
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from runformer.errors import ConfigError
from runformer.plugins.registry import shown

_OURS = "runformer.plugins"
MINDSPORE = ("mindspore", "mindformers", "mindpet")
"""The original and what it needs."""

MINDSPORE_HINT = "plug-ins here are PyTorch code: docs/plugins.md says how to write them"

# For a file that cannot be parsed: whether it looks as if it meant to be a plug-in.
_IMPORTS_OURS = re.compile(r"^\s*(from\s+runformer\s+import\s+.*\bplugins\b|(import|from)\s+runformer\.plugins)", re.M)


@dataclass(frozen=True, slots=True)
class Source:
    """A Python file, read but not run: the dotted names that it imports, and where it imports MindSpore first."""

    path: Path
    imports: frozenset[str]
    foreign: tuple[int, str] | None

    @property
    def is_plugin(self) -> bool:
        """Whether it imports ``runformer.plugins``; a script that uses another part of Runformer is none."""
        return any(name == "runformer" or f"{name}.".startswith(f"{_OURS}.") for name in self.imports)


def files_to_load(folder: Path, named: Collection[str]) -> list[Path]:
    """The plug-ins in a folder, the files that ``named`` modules are in, and the files there that these import.

    Raises:
        ConfigError: one of them has a syntax error, or imports MindSpore.
    """
    candidates = [path for path in sorted(folder.glob("*.py")) if path.is_file()]
    wanted = [source for path in candidates if (source := _read(path, must=path.stem in named)) is not None]
    found = {source.path: source for source in wanted if source.is_plugin or source.path.stem in named}
    waiting = list(found.values())
    while waiting:
        for path in _beside(folder, waiting.pop().imports):
            if path not in found and (source := _read(path, must=True)) is not None:
                found[path] = source
                waiting.append(source)
    for source in found.values():
        _refuse_mindspore(source)
    return sorted(found)


def _read(path: Path, *, must: bool) -> Source | None:
    """A file's imports; None for one that is no Python of today and need not be."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{shown(path)}: this plug-in cannot be read: {error.strerror}") from None
    if not must and b"runformer" not in data:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other people's scripts
            tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError) as error:
        if must or _IMPORTS_OURS.search(data.decode(errors="replace")):
            line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
            raise ConfigError(f"{shown(path)}{line}: this plug-in is not valid Python: {error}") from None
        return None
    first = [(node.lineno, name) for node in tree.body for name in _names(node) if name.split(".")[0] in MINDSPORE]
    return Source(path, frozenset(name for node in ast.walk(tree) for name in _names(node)), min(first, default=None))


def _names(node: ast.AST) -> Iterator[str]:
    """The dotted names that one statement imports; of ``from a import b`` both ``a`` and ``a.b`` where a is ours."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        yield from (f"runformer.{alias.name}" for alias in node.names if node.module == "runformer")
        if node.module != "runformer":
            yield node.module


def _beside(folder: Path, imports: Iterable[str]) -> Iterator[Path]:
    """The files of a folder, and of packages in it, that these imports lead to."""
    for name in {name.partition(".")[0] for name in imports}:
        if (folder / f"{name}.py").is_file():
            yield folder / f"{name}.py"
        elif (folder / name).is_dir():
            yield from sorted((folder / name).rglob("*.py"))


def _refuse_mindspore(source: Source) -> None:
    if source.foreign is not None:
        line, name = source.foreign
        raise ConfigError(f"{shown(source.path)}:{line}: this plug-in imports {name}", hint=MINDSPORE_HINT)


def refuse_writable(folder: Path, files: Iterable[Path]) -> None:
    """Refuse code that any user of the machine can change: sources, their folders, and what Python has compiled.

    Raises:
        ConfigError: naming the first such path.
    """
    paths = [folder]
    for file in files:
        compiled = Path(importlib.util.cache_from_source(str(file)))
        paths += [file, file.resolve().parent, compiled.parent, compiled]
    for path in dict.fromkeys(paths):
        if path.exists() and path.stat().st_mode & stat.S_IWOTH:
            raise ConfigError(
                f"{shown(path)}: every user of this machine can write here, so code from it is not run",
                hint=f"take that right away: chmod o-w {shown(path)}; or, if you trust all of them, "
                "add --trust_remote_code True to the command line",
            )
