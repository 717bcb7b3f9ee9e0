"""The schema's machinery: typed dataclasses whose fields say what a key means, and a reader that checks a tree.

A section of the YAML is a dataclass; each field is declared with one of

- ``sets``: the key decides something; ``task_field`` names the field of the Task;
- ``no_effect``: the key is accepted and does nothing here, for the reason given;
- ``refused``: only "off" values are accepted, for the reason given;
- ``group``: the key holds a section of its own.

Keys that only others have, of which nothing is kept, stand in a table ``OTHERS`` of the dataclass instead. A dataclass
with a field named by ``REST`` keeps all keys that it does not know in there, where its ``type`` is one of
``REST_TYPES`` (all, if it has none); whoever uses them checks them.

Unknown keys, wrong types and values out of bounds are all gathered in a ``Report``.
"""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar

from runformer.config.plugin_sections import PluginSection, read_plugin
from runformer.config.problems import Report, cut, nearest, suggestion
from runformer.config.yaml_file import Entry, Node
from runformer.plugins.registry import REGISTRY, Kind

T = TypeVar("T")

Role = Literal["sets", "no effect", "refused", "group"]
Mode = Literal["train", "eval", "predict"]

# What a user writes to say "off": such a value asks for nothing, so nothing needs to be said about it.
OFF: tuple[object, ...] = (None, False, "", "None", "off", "none")
_BEYOND_INTEGERS = 2**63
_LONGEST_SHOWN = 60  # characters of a value in a message
MAX_SUGGESTIONS = 50  # in one file: each is looked for in the whole schema


@dataclass(frozen=True, slots=True)
class Key:
    """What the schema knows of one key besides its type and default.

    ``about`` is the Task field for ``sets``, otherwise the reason. ``least`` and ``most`` are inclusive bounds,
    ``above`` an exclusive one; a number must be finite unless ``most`` is infinite. ``variants`` maps the ``type``
    of a list's items to their dataclasses; others are read as ``otherwise``. ``plugin`` is the kind of plug-in that a
    ``type`` may also name. ``accepted`` values of a key that is refused pass, and those of a key without effect are
    not worth a word.
    """

    role: Role
    meaning: str
    about: str
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    open: bool = False
    modes: tuple[Mode, ...] = ("train", "eval", "predict")
    variants: Mapping[str, type] | None = None
    otherwise: type | None = None
    plugin: Kind | None = None
    accepted: tuple[object, ...] = ()


def sets(task_field: str, meaning: str, default: Any = None, **limits: Any) -> Any:
    """A key that decides ``task_field`` of the Task."""
    return field(default=default, metadata={"key": Key("sets", meaning, task_field, **limits)})


def no_effect(reason: str, meaning: str, default: Any = None, **limits: Any) -> Any:
    """A key that is accepted and does nothing here."""
    return field(default=default, metadata={"key": Key("no effect", meaning, reason, **limits)})


def refused(reason: str, meaning: str, default: Any = None, **limits: Any) -> Any:
    """A key for something that cannot be done here; its default, ``accepted`` and "off" values pass."""
    return field(default=default, metadata={"key": Key("refused", meaning, reason, **limits)})


def group(meaning: str, default_factory: Callable[[], Any], **limits: Any) -> Any:
    """A key that holds a section. ``open`` sections take keys that the schema does not know."""
    return field(default_factory=default_factory, metadata={"key": Key("group", meaning, "", **limits)})


@dataclass(frozen=True, slots=True)
class Slot:
    """One key of a section as the reader needs it. One of ``OTHERS`` has no field, so its value is not kept."""

    name: str
    hint: Any
    key: Key
    default: Any
    has_field: bool = True


@functools.cache
def slots_of(section: type) -> Mapping[str, Slot]:
    """The keys of a section by every name they are known under, aliases included."""
    hints = typing.get_type_hints(section)
    result: dict[str, Slot] = {}
    for item in fields(section):
        if item.name == getattr(section, "REST", None):
            continue
        slot = Slot(item.name, hints[item.name], item.metadata["key"], item.default)
        result.update(dict.fromkeys((item.name, *slot.key.aliases), slot))
    others: Mapping[str, Key] = getattr(section, "OTHERS", {})
    return result | {name: Slot(name, Any, key, None, has_field=False) for name, key in others.items()}


def meanings_of(section: type) -> dict[str, str]:
    """Every name of a section's keys, with its meaning."""
    return {name: slot.key.meaning for name, slot in slots_of(section).items()}


def section_in(hint: Any) -> type | None:
    """The dataclass in a type hint, also within a union; None where there is none."""
    return next((member for member in _members(hint) if is_dataclass(member)), None)  # type: ignore[return-value]


def find_slot(root: type, path: str) -> Slot | None:
    """The slot of a dotted path, such as ``runner_config.epochs``; None where the schema has no such key."""
    *sections, leaf = path.split(".")
    current: type | None = root
    for name in sections:
        slot = slots_of(current).get(name) if current else None
        current = section_in(slot.hint) if slot else None
    return slots_of(current).get(leaf) if current else None


def paths_of(root: type, name: str, prefix: str = "") -> Iterator[str]:
    """Every path that ends in the key ``name`` and has an effect."""
    for known, slot in slots_of(root).items():
        inner = section_in(slot.hint)
        if known == name and slot.key.role == "sets":
            yield f"{prefix}{known}"
        if inner is not None:
            yield from paths_of(inner, name, f"{prefix}{known}.")


def _rest_of(section: type, node: Node) -> str | None:
    """The field that keeps the keys which a section does not know, if it keeps them."""
    field_name: str | None = getattr(section, "REST", None)
    types_: tuple[str, ...] | None = getattr(section, "REST_TYPES", None)
    kind = node.value.get("type") if isinstance(node.value, dict) else None
    if types_ is not None and (kind is None or kind.node.value not in types_):
        return None
    return field_name


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _accepts(hint: Any, node: Node) -> bool:
    """Whether a node has the shape of a type; what is inside a section is looked at later."""
    value = node.value
    if hint is Any:
        return True
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(_accepts(typing.get_args(hint)[0], item) for item in value)
    if is_dataclass(hint) or typing.get_origin(hint) is dict:
        return isinstance(value, dict)
    if isinstance(hint, types.UnionType):
        return any(_accepts(member, node) for member in _members(hint))
    return _accepts_scalar(hint, value)


def _accepts_scalar(hint: Any, value: object) -> bool:
    if hint is bool or isinstance(value, bool):  # a bool is an int in Python, and in no task file
        return hint is bool and isinstance(value, bool)
    if hint is types.NoneType:
        return value is None
    if hint is str:  # `prefix: 2024` means the text "2024"
        return isinstance(value, str | int | float)
    if not isinstance(value, int | float) or (isinstance(value, int) and abs(value) >= _BEYOND_INTEGERS):
        return False
    if hint is float:
        return not math.isnan(value)
    return isinstance(value, int) or (value.is_integer() and abs(value) < _BEYOND_INTEGERS)


def describe(hint: Any) -> str:
    """What a type looks like in a task file, in words."""
    if hint is Any:
        return "anything"
    if isinstance(hint, types.UnionType):
        words = (describe(member) for member in _members(hint) if member is not types.NoneType)
        return " or ".join(dict.fromkeys(words))
    if typing.get_origin(hint) is list:
        return f"a list, each item {describe(typing.get_args(hint)[0])}"
    if is_dataclass(hint) or typing.get_origin(hint) is dict:
        return "a group of keys"
    return {bool: "True or False", int: "an integer", float: "a number", str: "text"}[hint]


def plain(node: Node) -> Any:
    """The value of a tree as ordinary Python objects."""
    if isinstance(node.value, dict):
        return {name: plain(entry.node) for name, entry in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def spell(node: Node) -> str:
    """A value as a message shows it."""
    if isinstance(node.value, dict):
        return "a group of keys"
    if isinstance(node.value, list):
        return "a list"
    text = cut(node.text, _LONGEST_SHOWN)
    return f"the text {text!r}" if isinstance(node.value, str) else (text or "empty")


class Reader:
    """Reads sections out of a tree; what is wrong goes into ``report``. ``modes``: what the run does."""

    def __init__(self, root: type, report: Report, *modes: Mode) -> None:
        self.root = root
        self.report = report
        self.modes = frozenset(modes)
        self._read_before: dict[tuple[int, type], Any] = {}
        self._unknown_keys = 0

    def section(self, section: type[T], node: Node, path: str = "", *, open_: bool = False, quiet: bool = False) -> T:
        """One section as its dataclass. ``quiet``: it is not used in this run mode, so nothing is said about it."""
        assert isinstance(node.value, dict)
        before = (id(node), section)  # an alias: what is wrong inside was said where it first stood
        if before in self._read_before:
            return typing.cast(T, self._read_before[before])
        slots = slots_of(typing.cast(type, section))
        chosen: dict[str, tuple[str, Entry]] = {}
        rest = _rest_of(section, node)
        values: dict[str, Any] = {}
        for name, entry in node.value.items():
            if name in slots:
                self._choose(chosen, slots[name], name, entry, path)
            elif rest is not None:
                values.setdefault(rest, {})[name] = plain(entry.node)
                self.report.record(f"{path}{name}", f"{path}{name}", entry.key)
            elif not open_:
                self._unknown(section, name, entry, path)
        for field_name, (name, entry) in chosen.items():
            place = entry.key if entry.key.on_command_line else entry.node.place
            self.report.record(f"{path}{field_name}", f"{path}{name}", place)
            self._read(values, slots[name], entry.node, f"{path}{field_name}", quiet)
        result = self._read_before[before] = section(**values)
        return result

    def _choose(self, chosen: dict[str, tuple[str, Entry]], slot: Slot, name: str, entry: Entry, path: str) -> None:
        """Of two names for one key the higher rank wins; at the same rank they must agree."""
        if entry.node.value is None or (entry.node.value == "None" and _accepts(slot.hint, Node(None, entry.key))):
            return  # null means: not given
        known = chosen.get(slot.name)
        if known is not None and known[1].key.rank == entry.key.rank and plain(known[1].node) != plain(entry.node):
            text = f"and {name!r} are one key under two names, and their values differ"
            self.report.error(f"{path}{known[0]}", text, entry.key)
        if known is None or known[1].key.rank <= entry.key.rank:
            chosen[slot.name] = (name, entry)

    def _unknown(self, section: type, name: str, entry: Entry, path: str) -> None:
        self._unknown_keys += 1
        text = self._suggestion(section, name) if self._unknown_keys <= MAX_SUGGESTIONS else ""
        self.report.error(f"{path}{cut(name)}", f"is not a known key{text}", entry.key)

    def _suggestion(self, section: type, name: str) -> str:
        elsewhere = next(paths_of(self.root, name), None)
        if elsewhere is None:
            return suggestion(name, meanings_of(section))
        parent = elsewhere.rpartition(".")[0]
        return f": it belongs to {parent}" if parent else ": it belongs to the top level"

    def _read(self, values: dict[str, Any], slot: Slot, node: Node, path: str, quiet: bool) -> None:
        if not _accepts(slot.hint, node):
            near = nearest(str(node.value), ("True", "False")) if slot.hint is bool else None
            suggested = f"; did you mean {near}?" if near else ""
            self.report.error(path, f"must be {describe(slot.hint)}, not {spell(node)}{suggested}")
            return
        quiet = quiet or self.modes.isdisjoint(slot.key.modes)
        value = self._value(slot, slot.hint, node, path, quiet)
        if self._within_limits(slot.key, value, path) and slot.has_field:
            values[slot.name] = value
        if slot.key.role == "no effect" and value not in (*OFF, *slot.key.accepted) and not quiet:
            self.report.no_effect(path, slot.key.about)
        if slot.key.role == "refused" and value not in (*OFF, slot.default, *slot.key.accepted):
            self.report.error(path, f"cannot be {_shown(value)}: {slot.key.about}")

    def _value(self, slot: Slot, hint: Any, node: Node, path: str, quiet: bool) -> Any:
        if isinstance(hint, types.UnionType):
            hint = next(member for member in _members(hint) if _accepts(member, node))
        if is_dataclass(hint):
            section: type = hint  # type: ignore[assignment]
            plugin = self._plugin(slot.key, node, path)
            return plugin or self.section(section, node, f"{path}.", open_=slot.key.open, quiet=quiet)
        if isinstance(node.value, list) and (slot.key.variants or slot.key.plugin):
            others = section_in(*typing.get_args(hint))
            numbered = enumerate(node.value)
            items = (self._variant(slot.key, others, item, f"{path}[{index}]", quiet) for index, item in numbered)
            return [item for item in items if item is not None]
        if isinstance(node.value, list) and typing.get_origin(hint) is list:
            inner = typing.get_args(hint)[0]
            numbered = enumerate(node.value)
            places = ((f"{path}[{index}]" if is_dataclass(inner) else path, item) for index, item in numbered)
            return [self._value(slot, inner, item, place, quiet) for place, item in places]
        if hint in (int, float):
            return hint(node.value)
        return node.text if hint is str and not isinstance(node.value, str) else plain(node)

    def _plugin(self, key: Key, node: Node, path: str) -> PluginSection | None:
        """A section whose ``type`` names a plug-in; None for any other."""
        if key.plugin is None:
            return None
        assert isinstance(node.value, dict)
        values = plain(node)
        plugin = REGISTRY.find(key.plugin, values.get("type"))
        return None if plugin is None else read_plugin(plugin, node.value, values, path, self.report)

    def _variant(self, key: Key, others: type | None, node: Node, path: str, quiet: bool) -> Any:
        """One item of a list, whose ``type`` names its dataclass; ``others`` where no names are known."""
        assert isinstance(node.value, dict)
        self.report.record(path, path, node.place)
        kind = node.value.get("type")
        name = plain(kind.node) if kind else None
        if not isinstance(name, str):
            self.report.error(path, "needs a 'type'")
            return None
        plugin = self._plugin(key, node, path)
        if plugin is not None:
            return plugin
        section = (key.variants or {}).get(name, others if key.variants is None else key.otherwise)
        if section is None:
            near = nearest(name, (*(key.variants or {}), *(REGISTRY.of_kind(key.plugin) if key.plugin else ())))
            text = f": did you mean {near!r}?" if near else "; plug-ins are found in the folder of --register_path"
            place = kind.node.place if kind else None
            self.report.error(f"{path}.type", f"is {name!r}, which is not known{text}", place)
            return None
        known_by_name_only = slots_of(section).keys() <= {"type", "auto_register"}
        return self.section(section, node, f"{path}.", open_=known_by_name_only, quiet=quiet)

    def _within_limits(self, key: Key, value: Any, path: str) -> bool:
        wrong = [text for text in (_out_of_bounds(key, item) for item in _each(value)) if text]
        if wrong:
            self.report.error(path, wrong[0])
        return not wrong


def spell_number(bound: float) -> str:
    """A bound as people write it: 16777216, not 1.67772e+07."""
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _shown(value: Any) -> str:
    return cut(f"{value!r}", _LONGEST_SHOWN) if isinstance(value, bool | int | float | str) else "given"


def _out_of_bounds(key: Key, value: Any) -> str | None:
    """What is wrong with a value's size or spelling, or None."""
    if key.choices and isinstance(value, str) and value not in key.choices:
        near = nearest(value, key.choices)
        return f"must be one of {', '.join(key.choices)}, not {value!r}" + (f": did you mean {near!r}?" if near else "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and math.isinf(value) and key.most != math.inf:
        return f"must be finite, not {value}"
    if key.least is not None and value < key.least:
        return f"must be at least {spell_number(key.least)}, not {value}"
    if key.above is not None and value <= key.above:
        return f"must be more than {spell_number(key.above)}, not {value}"
    if key.most is not None and value > key.most:
        return f"must be at most {spell_number(key.most)}, not {value}"
    return None
