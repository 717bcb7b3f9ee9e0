"""The schema in words: what one key of a task file means, and the page that lists them all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from runformer.config.problems import suggestion
from runformer.config.schema import Key, Slot, describe, section_in, slots_of, spell_number
from runformer.config.sections import Config
from runformer.errors import UsageError

PAGE_COMMAND = "python -m runformer config --page"


@dataclass(frozen=True, slots=True)
class _Described:
    """A key or, where ``slot`` is None, one kind of a list's items."""

    path: str
    slot: Slot | None
    section: type | None


def explain(path: str) -> str:
    """What the schema says of one key, such as ``parallel_config.micro_batch_num``, in a few lines.

    A section is explained with its keys; an item of ``callbacks`` is named by its type, as in
    ``callbacks.CheckpointMonitor.prefix``.

    Raises:
        UsageError: there is no such key.
    """
    found = _find(path)
    lines = [found.path if found.slot is None else f"{found.path}: {values(found.slot)}"]
    if found.slot is not None:
        lines += [f"  {found.slot.key.meaning}", f"  {effect(found.slot.key)}"]
        others = sorted({found.slot.name, *found.slot.key.aliases} - {path.rpartition(".")[2]})
        if others:
            lines.append(f"  Also known as {', '.join(others)}.")
    inside = _inside(found)
    if inside:
        width = max(map(len, inside))
        lines += ["  Keys:", *(f"    {name:<{width}}  {meaning}" for name, meaning in inside.items())]
    return "\n".join(lines)


def _find(path: str) -> _Described:
    found = _Described("", None, Config)
    for name in path.split("."):
        choices = _choices(found)
        if name not in choices:
            what = f"{found.path} has no key" if found.path else "there is no key"
            raise UsageError(f"--explain {path}: {what} {name!r}{suggestion(name, _inside(found))}")
        found = choices[name]
    return found


def _choices(described: _Described) -> dict[str, _Described]:
    """What may follow in a path, by name."""
    prefix = f"{described.path}." if described.path else ""
    if described.slot is not None and described.slot.key.variants:
        kinds = described.slot.key.variants
        return {kind: _Described(f"{prefix}{kind}", None, section) for kind, section in kinds.items()}
    if described.section is None:
        return {}
    return {
        name: _Described(f"{prefix}{slot.name}", slot, section_in(slot.hint))
        for name, slot in slots_of(described.section).items()
    }


def _inside(described: _Described) -> dict[str, str]:
    return {
        name: choice.slot.key.meaning if choice.slot is not None else _headline(choice.section)
        for name, choice in _choices(described).items()
        if choice.slot is None or name == choice.slot.name
    }


def _headline(section: type | None) -> str:
    """The first line of a section's docstring without the name that it begins with."""
    line = ((section.__doc__ if section else "") or "").partition("\n")[0]
    text = line.rpartition("``: ")[2]
    return text[:1].upper() + text[1:]


def values(slot: Slot) -> str:
    """What may be written, and what holds otherwise: ``an integer, at least 1; 1 if left out``."""
    key = slot.key
    allowed = f"one of {', '.join(key.choices)}" if key.choices else describe(slot.hint)
    bounds = "".join(
        f", {word} {spell_number(bound)}"
        for word, bound in (("at least", key.least), ("more than", key.above), ("at most", key.most))
        if bound is not None and bound != math.inf
    )
    given = slot.default not in (None, dataclasses.MISSING)
    return allowed + bounds + (f"; {slot.default!r} if left out" if given else "")


def effect(key: Key) -> str:
    """What a key does here, or why it does nothing."""
    if key.role == "no effect":
        return f"No effect here: {key.about}."
    if key.role == "refused":
        return f"Not supported: {key.about}."
    if key.role == "group":
        if key.plugin:
            return "A section; its type may name a plug-in."
        return "A section." if not key.open else "A section; keys that are not known are passed over."
    return f"Sets {key.about}."


def page() -> str:
    """All keys as a Markdown page, a table a section, in the schema's order."""
    parts = [
        "# Configuration",
        f"Every key of a task file, made from the schema by `{PAGE_COMMAND}`. One key is explained by\n"
        "`python -m runformer config --explain runner_config.epochs`; a key on the command line is\n"
        "`--runner_config.epochs 3`.",
    ]
    first: dict[type, str] = {}
    for path, section in _sections(_Described("", None, Config)):
        heading = f"## `{path}`" if path else "## Top level"
        if first.setdefault(section, path) != path:
            parts += [heading, f"As [`{first[section]}`](#{_anchor(first[section])})."]
        else:
            parts += [heading, *([_headline(section)] if path else []), _table(section)]
    return "\n\n".join(parts) + "\n"


def _anchor(path: str) -> str:
    """The name under which Markdown viewers link to a heading."""
    return "".join(letter for letter in path.lower() if letter.isalnum() or letter in "_-")


def _sections(described: _Described) -> Iterator[tuple[str, type]]:
    if described.section is not None and (described.slot is None or not described.slot.key.variants):
        yield described.path, described.section
    for name, choice in _choices(described).items():
        if choice.slot is None or (name == choice.slot.name and (choice.section or choice.slot.key.variants)):
            yield from _sections(choice)


def _table(section: type) -> str:
    slots: Mapping[str, Slot] = slots_of(section)
    rows = ["| key | value | meaning | here |", "|---|---|---|---|"]
    for name, slot in slots.items():
        if name == slot.name:
            names = " or ".join(f"`{known}`" for known in (name, *slot.key.aliases))
            cells = (names, values(slot), slot.key.meaning, effect(slot.key))
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)
