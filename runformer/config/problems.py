"""Where a setting was written, what is wrong with it, and what the user should be told.

A ``Report`` travels through the whole loading of a configuration. It gathers every problem before one
ConfigError shows them all, and every key that has no effect here before one notice names them all.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from runformer.errors import ConfigError

T = TypeVar("T")

COMMAND_LINE_RANK = 1
MAX_LINES = 100  # of one error: whoever has that many problems has one
_LONGEST_LINE = 2000
_LONGEST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written: a file with line and column (from 1), or a flag of the command line.

    Of two places that set the same thing, the one of higher ``rank`` wins: ``base_config`` files have negative
    ranks, the file itself 0, the command line 1.
    """

    source: str
    line: int | None = None
    column: int | None = None
    rank: int = 0

    @classmethod
    def flag(cls, flag: str) -> Place:
        """The place of a command-line flag, such as ``--epochs``."""
        return cls(f"command line: {flag}", rank=COMMAND_LINE_RANK)

    @property
    def on_command_line(self) -> bool:
        """Whether a flag set it, not a file."""
        return self.rank == COMMAND_LINE_RANK

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


def cut(text: str, longest: int = _LONGEST_SHOWN) -> str:
    """A text as a message shows it: of a long one the middle is left out, since paths differ at the end."""
    tail = longest // 4
    return text if len(text) <= longest else f"{text[: longest - tail]}…{text[-tail:]}"


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """The known name that looks most like a misspelt one, or None if none is ``likeness`` (0 to 1) alike."""
    known = list(known)
    by_folded = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_folded, n=1, cutoff=likeness)
    return by_folded[found[0]] if found else None


def compact(paths: Iterable[str]) -> str:
    """``a.x, a.y, z`` as ``a.{x, y}, z``: the keys of a section are named together."""
    sections: dict[str, list[str]] = {}
    for path in paths:
        parent, _, leaf = path.rpartition(".")
        sections.setdefault(parent, []).append(leaf)
    parts = []
    for parent, leaves in sections.items():
        names = ", ".join(leaves)
        if not parent:
            parts.append(names)
        else:
            parts.append(f"{parent}.{names}" if len(leaves) == 1 else f"{parent}.{{{names}}}")
    return ", ".join(parts)


@dataclass
class Report:
    """What was found while one configuration was read.

    ``source`` names its file in messages. ``planning``: the run is only planned, so what has to be there or built
    before it can start is noted, not refused.
    """

    source: str
    planning: bool = False
    to_fill_in: dict[str, str] = field(default_factory=dict)
    unbuilt: list[str] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    _written: dict[str, str] = field(default_factory=dict)
    _problems: list[tuple[Place | None, str]] = field(default_factory=list)
    _no_effect: dict[str, list[str]] = field(default_factory=dict)
    _notices: list[str] = field(default_factory=list)

    def record(self, path: str, written: str, place: Place) -> None:
        """Remember where the key ``path`` was set, and under which name the user wrote it."""
        self.places[path] = place
        self._written[path] = written

    def given(self, path: str) -> bool:
        """Whether the user wrote this key, with any value but null."""
        return path in self.places

    def place(self, path: str) -> Place | None:
        """Where a key was written; for one left out, where the section around it begins."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path.rpartition(".")[0]
        return None

    def error(self, path: str, text: str, place: Place | None = None) -> None:
        """Add a problem with the key ``path``: ``text`` goes on after the key's name."""
        self._problems.append(
            (place or self.place(path) or Place(self.source), f"{self._written.get(path, path)} {text}")
        )

    def failure(self, path: str, text: str) -> ConfigError:
        """The same problem as an exception, for code that cannot go on without the value."""
        place = self.place(path)
        return ConfigError(f"{place or self.source}: {self._written.get(path, path)} {text}")

    def attempt(self, build: Callable[[], T]) -> T | None:
        """Run one part of the work; a ConfigError of it becomes a problem and the others go on."""
        try:
            return build()
        except ConfigError as error:
            self._problems.append((None, str(error)))
            return None

    def fill_in(self, path: str, text: str) -> None:
        """What has to be given before the run can start: in a plan it is listed, otherwise it is a problem."""
        if self.planning:
            self.to_fill_in.setdefault(self._written.get(path, path), text)
        else:
            self.error(path, text)

    def not_built(self, path: str, text: str) -> None:
        """Note what is asked for and right, and cannot be run yet."""
        place = self.place(path) or Place(self.source)
        self.unbuilt.append(f"{place}: {self._written.get(path, path)} {text}")

    def no_effect(self, path: str, reason: str) -> None:
        """Note a key that is accepted and does nothing here."""
        self._no_effect.setdefault(reason, []).append(path)

    def notice(self, text: str) -> None:
        """Tell the user something that is no error."""
        if text not in self._notices:
            self._notices.append(text)

    def notices(self) -> tuple[str, ...]:
        """Every notice, the keys without effect grouped into the last one."""
        if not self._no_effect:
            return tuple(self._notices)
        groups = [f"  {compact(paths)}: {reason}" for reason, paths in self._no_effect.items()]
        return (*self._notices, "\n".join(["keys without effect here", *groups]))

    def without_effect(self) -> dict[str, tuple[str, ...]]:
        """The keys without effect, by reason."""
        return {reason: tuple(paths) for reason, paths in self._no_effect.items()}

    def raise_problems(self) -> None:
        """Show every problem found so far.

        Raises:
            ConfigError: if there is any.
        """
        if not self._problems:
            return
        ordered = sorted(self._problems, key=_position)
        found = list(dict.fromkeys(text if place is None else f"{place}: {text}" for place, text in ordered))
        lines = [cut(line, _LONGEST_LINE) for line in found[:MAX_LINES]]
        if len(found) == 1:
            raise ConfigError(lines[0])
        if len(found) > MAX_LINES:
            lines.append(f"… and {len(found) - MAX_LINES} more")
        raise ConfigError(f"{self.source}: {len(found)} problems\n" + "\n".join(f"  {line}" for line in lines))


def _position(problem: tuple[Place | None, str]) -> tuple[int, str, int, int]:
    place = problem[0]
    if place is None:
        return (1, "", 0, 0)
    return (0, "" if place.line is None else place.source, place.line or 0, place.column or 0)


def suggestion(name: str, meanings: Mapping[str, str]) -> str:
    """``: did you mean X (its meaning)?`` for a misspelt key, or nothing."""
    found = nearest(name, meanings)
    return "" if found is None else f": did you mean {found!r}? ({meanings[found]})"
