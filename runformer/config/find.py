"""Where a task file and the folder of a recipe lie."""

from __future__ import annotations

from pathlib import Path

from runformer.config.paths import absolute, display, is_there
from runformer.config.problems import nearest
from runformer.errors import ConfigError

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the package ``runformer``, and beside it ``configs`` and ``research``."""


def find_register_path(name: str | None) -> Path | None:
    """The folder that ``--register_path`` names, looked for in the current directory, then the repository root.

    Raises:
        ConfigError: if there is no such folder.
    """
    if not name:
        return None
    for base in (Path.cwd(), REPOSITORY_ROOT):
        folder = base / absolute(name) if name.startswith("~") else base / name
        if is_there(folder) and folder.is_dir():
            return folder
    places = " or ".join(str(base) for base in dict.fromkeys((Path.cwd(), REPOSITORY_ROOT)))
    raise ConfigError(f"command line: --register_path: there is no folder {name} in {places}")


def find_config(name: str, register_path: Path | None) -> tuple[Path, str]:
    """The task file that ``--config`` names, and where it was found, in words.

    Looked for in the current directory, the repository root and the register path; then a file of that name that
    stands once under ``configs``.

    Raises:
        ConfigError: if there is none, or if several files under ``configs`` have that name.
    """
    wanted = absolute(name) if name.startswith("~") else Path(name)
    folders = {"the current directory": Path.cwd(), "the repository root": REPOSITORY_ROOT}
    if register_path is not None:
        folders["the register path"] = register_path
    for words, folder in folders.items():
        path = folder / wanted
        if not is_there(path):
            continue
        if path.is_dir():
            raise ConfigError(f"command line: --config: {path} is a folder", hint="name a .yaml file in it")
        return path, "" if wanted.is_absolute() else words
    candidates = [] if wanted.is_absolute() else _under_configs(wanted.name)
    if len(candidates) == 1:
        return candidates[0], "the repository's recipes"
    raise _not_found(name, folders, candidates)


def _under_configs(basename: str) -> list[Path]:
    return sorted(path for path in (REPOSITORY_ROOT / "configs").rglob("*.yaml") if path.name == basename)


def _not_found(name: str, folders: dict[str, Path], candidates: list[Path]) -> ConfigError:
    if candidates:
        listed = ", ".join(str(path.relative_to(REPOSITORY_ROOT)) for path in candidates)
        return ConfigError(f"command line: --config: several recipes are called {name}", hint=f"name one of {listed}")
    if Path(name).is_absolute():
        searched = str(Path(name).parent)
        folders = {"": Path(name).parent}
    else:
        searched = ", ".join([*(f"{words} ({folder})" for words, folder in folders.items()), "configs/"])
    return ConfigError(
        f"command line: --config: there is no file {name} in {searched}", hint=_near_names(name, folders)
    )


def _near_names(name: str, folders: dict[str, Path]) -> str | None:
    known: dict[str, Path] = {}
    for folder in [*((base / name).parent for base in folders.values()), *folders.values()]:
        known |= {path.name: path for path in folder.glob("*.yaml")}
    for recipes in (REPOSITORY_ROOT / "configs", REPOSITORY_ROOT / "research"):
        known |= {path.name: path for path in recipes.rglob("*.yaml")}
    near = nearest(Path(name).name, known)
    return None if near is None else f"did you mean {display(known[near])}?"
