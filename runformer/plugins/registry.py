"""What plug-ins have registered: for each kind a name, what it stands for, and where that was written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runformer.errors import ConfigError

Kind = Literal["optimizer", "schedule", "callback", "data_handler", "model_family"]

WORDS: dict[Kind, str] = {
    "optimizer": "optimizer",
    "schedule": "schedule",
    "callback": "callback",
    "data_handler": "data handler",
    "model_family": "model family",
}
"""Each kind as messages call it."""

SUPPLIED: dict[Kind, tuple[str, ...]] = {"optimizer": ("params", "lr"), "schedule": ("total_steps", "steps_per_epoch")}
"""What the run itself gives to a plug-in, by position, before the keys of its section."""


@dataclass(frozen=True, slots=True)
class Family:
    """A model family: what it adds to a model's options.

    Attributes:
        name: Hugging Face's ``model_type``.
        options: fields of ``ModelOptions`` that the architecture fixes.
        from_config: further fields, from a ``config.json`` as a mapping.
    """

    name: str
    options: Mapping[str, Any]
    from_config: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True)
class Registration:
    """One name, what it stands for (a class, a function, a ``Family``), and the file and line that registered it."""

    kind: Kind
    name: str
    target: Any
    file: Path
    line: int

    @property
    def place(self) -> str:
        """``file:line``."""
        return f"{shown(self.file)}:{self.line}"

    def __str__(self) -> str:
        return f"{WORDS[self.kind]} {self.target.name if isinstance(self.target, Family) else self.name}"


@dataclass(frozen=True, slots=True)
class Parameters:
    """The keys that a plug-in's section may have, and those that it must. ``takes_any``: it has ``**kwargs``."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    takes_any: bool = False


@dataclass
class Registry:
    """Registrations by kind and name."""

    _entries: dict[tuple[Kind, str], Registration] = field(default_factory=dict)

    def add(self, registration: Registration) -> None:
        """Make a name known; the same code may do so again.

        Raises:
            ConfigError: other code has registered it, or what it stands for cannot be called as its kind is.
        """
        key = registration.kind, registration.name
        other = self._entries.get(key)
        if other is not None and (other.file, other.line) != (registration.file, registration.line):
            text = f"{registration.place}: the {WORDS[key[0]]} {key[1]!r} is already registered at {other.place}"
            raise ConfigError(text, hint="give one of the two another name")
        _check(registration)
        self._entries[key] = registration

    def find(self, kind: Kind, name: object) -> Registration | None:
        """What a name stands for, if anything."""
        return self._entries.get((kind, name)) if isinstance(name, str) else None

    def of_kind(self, kind: Kind) -> dict[str, Registration]:
        """All of one kind by name."""
        return {name: entry for (known, name), entry in self._entries.items() if known == kind}

    def of_file(self, file: Path) -> list[Registration]:
        """What one file registered, in its order."""
        return [entry for entry in self._entries.values() if entry.file == file]

    def forget(self, file: Path) -> None:
        """Drop what one file, or the files of a package, registered."""
        self._entries = {key: entry for key, entry in self._entries.items() if not entry.file.is_relative_to(file)}


REGISTRY = Registry()
"""The registrations of this process."""


def find(kind: Kind, name: str) -> Registration:
    """What a name of a Task stands for.

    Raises:
        ConfigError: it is not registered in this process.
    """
    found = REGISTRY.find(kind, name)
    if found is None:
        raise ConfigError(f"there is no {WORDS[kind]} {name!r} here", hint="its plug-in is loaded by --register_path")
    return found


def parameters_of(registration: Registration) -> Parameters:
    """The parameters of a plug-in that keys of its section set: all but those that the run itself gives."""
    signature = _signature(registration.target)
    if signature is None:
        return Parameters(takes_any=True)
    kinds = inspect.Parameter
    own = list(signature.parameters.values())[len(SUPPLIED.get(registration.kind, ())) :]
    named = [item for item in own if item.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    return Parameters(
        required=tuple(item.name for item in named if item.default is kinds.empty),
        optional=tuple(item.name for item in named if item.default is not kinds.empty),
        takes_any=any(item.kind is kinds.VAR_KEYWORD for item in own),
    )


def _signature(target: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):  # a class of compiled code
        return None


def _check(registration: Registration) -> None:
    """Whether a plug-in can be called with what the run gives it."""
    kind, target = registration.kind, registration.target
    if isinstance(target, Family):
        return
    if not callable(target):
        text = f"{registration.place}: the {registration} is of type {type(target).__name__}, which cannot be called"
        raise ConfigError(text, hint="register a class or a function")
    signature, supplied = _signature(target), SUPPLIED.get(kind, ())
    try:
        if signature is not None:
            signature.bind_partial(*supplied)
    except TypeError:
        call = ", ".join((*supplied, "**keys"))
        raise ConfigError(f"{registration.place}: the {registration} cannot be called with ({call})") from None


def shown(path: Path) -> str:
    """A path as messages show it: relative to the current directory where it lies inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
