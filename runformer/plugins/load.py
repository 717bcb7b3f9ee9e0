"""Running the plug-ins of a folder, once each in a process."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runformer.errors import ConfigError
from runformer.plugins.failures import line_in, spell
from runformer.plugins.registry import REGISTRY, WORDS, Kind, Registration, shown
from runformer.plugins.sources import MINDSPORE, MINDSPORE_HINT, files_to_load, refuse_writable


@dataclass(frozen=True, slots=True)
class Wanted:
    """One ``auto_register: module.attribute`` of a task file, for the plug-in called ``type`` in its section.

    ``place`` and ``key`` say where it stands, for messages.
    """

    kind: Kind
    type: str
    reference: str
    place: str
    key: str

    @property
    def module(self) -> str:
        """The file's name without its end."""
        return self.reference.rpartition(".")[0]

    @property
    def attribute(self) -> str:
        """The name in that file."""
        return self.reference.rpartition(".")[2]

    def failure(self, text: str, near: str = "") -> ConfigError:
        """An error about it."""
        return ConfigError(f"{self.place}: {self.key}: {text}" + (f"; did you mean {near!r}?" if near else ""))


def load_plugins(folder: Path, wanted: Collection[Wanted], *, trusted: bool) -> list[Path]:
    """Run the plug-ins of a folder and register what ``wanted`` names; the files that were run, helpers included.

    Args:
        folder: the register path. Files in it that neither import ``runformer.plugins`` nor are wanted stay untouched.
        wanted: what sections of the task file name.
        trusted: code that every user of the machine can change is run, too.

    Raises:
        ConfigError: others could have written the code, a plug-in fails, or something wanted is not there.
    """
    folder = folder.resolve()
    for item in wanted:
        _require_file(folder, item)
    files = files_to_load(folder, {item.module for item in wanted})
    if not trusted and files:
        refuse_writable(folder, files)
    modules = list(dict.fromkeys(folder / path.relative_to(folder).parts[0] for path in files))
    for module in modules:
        _refuse_clash(module)
    with _importable(folder):
        for module in modules:
            _run(module)
    for item in wanted:
        _register(item)
    return files


def _require_file(folder: Path, wanted: Wanted) -> None:
    if not all(part.isidentifier() for part in wanted.reference.split(".")) or wanted.reference.count(".") != 1:
        raise wanted.failure(f"is {wanted.reference!r}; it should name a file and a class in it, as file.Class")
    if not (folder / f"{wanted.module}.py").is_file():
        near = _nearest(wanted.module, [path.stem for path in folder.glob("*.py")])
        raise wanted.failure(f"there is no file {shown(folder / wanted.module)}.py", near)


def _nearest(name: str, known: Collection[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return found[0] if found else ""


def _refuse_clash(module: Path) -> None:
    """Refuse a file or package whose name another module has: one would be imported in the other's place."""
    name = module.stem
    if not name.isidentifier():
        raise ConfigError(f"{shown(module)}: a plug-in's file needs a name that Python can import")
    others = [place for place in _places(name) if not Path(place).resolve().is_relative_to(module.resolve())]
    if others:
        text = f"{shown(module)}: {name} is also the name of another module ({others[0]})"
        raise ConfigError(text, hint="rename the plug-in's file")


def _places(name: str) -> list[str]:
    """Where a module of this name lies that would be imported now; none where there is no such module."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # __main__ says nothing of itself
        return [name]
    if spec is None or (spec.origin is None and name not in sys.modules):  # folders give way to files
        return []
    return [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let plug-ins import what lies beside them. Last in the path: nothing of theirs replaces a module of others."""
    importlib.invalidate_caches()
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _run(module: Path) -> None:
    try:
        importlib.import_module(module.stem)
    except (Exception, SystemExit) as error:
        REGISTRY.forget(module)
        if isinstance(error, ConfigError):  # of a registration
            raise
        place = line_in(error, module.parent) or shown(module)
        missing = (getattr(error, "name", None) or "").partition(".")[0]
        hint = MINDSPORE_HINT if missing in MINDSPORE else "add --debug to see the whole traceback"
        raise ConfigError(f"{place}: loading this plug-in raised {spell(error)}", hint=hint) from error


def _register(wanted: Wanted) -> None:
    """Register the class that a section names, where its file has not registered the section's type itself."""
    if REGISTRY.find(wanted.kind, wanted.type) is not None:
        return
    module = sys.modules[wanted.module]
    target = getattr(module, wanted.attribute, None)
    file = Path(str(module.__file__))
    if target is None:
        near = _nearest(wanted.attribute, [name for name in vars(module) if not name.startswith("_")])
        raise wanted.failure(f"there is no {wanted.attribute} in {shown(file)}", near)
    if wanted.kind == "model_family":
        text = f"{shown(file)} does not register the {WORDS[wanted.kind]} {wanted.type!r}"
        raise ConfigError(f"{wanted.place}: {wanted.key}: {text}", hint="a family is named by plugins.model_family")
    REGISTRY.add(Registration(wanted.kind, wanted.attribute, target, file, 1))
