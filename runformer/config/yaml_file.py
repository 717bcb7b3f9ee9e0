"""YAML files as MindFormers users write them, with the position of every key and value kept.

YAML 1.1 as PyYAML scans it, with three differences that real files ask for: ``1e-5`` is a number (PyYAML
wants ``1.e-5``), dates and base-60 numbers stay text, and a key that stands twice is refused. A file is
untrusted input: no tags that build objects, and bounds on its size, its depth and what its aliases unfold to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import yaml

from runformer.config.paths import is_there
from runformer.config.problems import Place, cut
from runformer.errors import ConfigError

Scalar: TypeAlias = bool | int | float | str | None

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_NODES = 20_000  # after aliases are unfolded
MAX_BASE_CONFIGS = 10  # one that is named twice counts twice
MAX_DIGITS = 1000  # of an integer; Python prints none much longer

_TAG = "tag:yaml.org,2002:"
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {
    word: value
    for words, value in (("yes true on", True), ("no false off", False))
    for lower in words.split()
    for word in (lower, lower.capitalize(), lower.upper())
}
_INTEGER = re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"([-+]?)\.?(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Entry(NamedTuple):
    """One key of a mapping: where the key stands, and its value."""

    key: Place
    node: Node


@dataclass(slots=True)
class Node:
    """A value with its place. ``text`` is the spelling of a scalar."""

    value: Scalar | dict[str, Entry] | list[Node]
    place: Place
    text: str = ""


def scalar_value(text: str) -> Scalar:
    """What an unquoted word means: null, a boolean, a number, or the text itself."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    try:
        if _INTEGER.fullmatch(text):
            return _integer(text.replace("_", ""))
        if _FLOAT.fullmatch(text):
            return float(text.replace("_", ""))
    except ValueError:  # "0x_", or too many digits
        return text
    special = _SPECIAL_FLOAT.fullmatch(text)
    if special is None:
        return text
    return float("nan") if special[3] else float(f"{special[1]}inf")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"{len(digits)} digits")
    bare = digits.lstrip("+-")
    base = 16 if bare.startswith("0x") else 2 if bare.startswith("0b") else 8 if bare.startswith("0") else 10
    return int(digits, base)


def parse_value(text: str, place: Place) -> Node:
    """A value of the command line: lists and mappings in YAML's ``[a, b]`` and ``{a: b}`` form, else one word."""
    if text.startswith(("[", "{", '"', "'")) and not yaml.reader.Reader.NON_PRINTABLE.search(text):
        try:
            node = _Builder(text, place).document()
        except ConfigError:
            return Node(text, place, text)
        return node if node is not None else Node(None, place, text)
    return Node(None if text == "None" else scalar_value(text), place, text)


class _Builder:
    """Builds the tree of one document from PyYAML's events. ``fixed`` places stand for text that is no file."""

    def __init__(self, text: str, place: Place) -> None:
        self.place = place
        self.events: Iterator[yaml.Event] = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self.anchors: dict[str, Node] = {}
        self.sizes: dict[int, int] = {}
        self.merged = 0
        self.unfinished: set[str] = set()

    def document(self) -> Node | None:
        """The root, or None where the text holds nothing.

        Raises:
            ConfigError: with the position of what is wrong.
        """
        try:
            self._next(yaml.StreamStartEvent)
            if isinstance(self._next(), yaml.StreamEndEvent):
                return None
            root = self._node(self._next(), depth=1)
            self._next(yaml.DocumentEndEvent)
            following = self._next()
        except yaml.MarkedYAMLError as error:
            raise self._syntax_error(error) from None
        if not isinstance(following, yaml.StreamEndEvent):
            raise ConfigError(f"{self._at(following)}: a second YAML document begins here; one file holds one task")
        return root

    def _next(self, kind: type[yaml.Event] = yaml.Event) -> yaml.Event:
        event = next(self.events)
        assert isinstance(event, kind)
        return event

    def _at(self, event: yaml.Event) -> Place:
        if self.place.on_command_line:
            return self.place
        mark = event.start_mark
        assert mark is not None
        return Place(self.place.source, mark.line + 1, mark.column + 1, self.place.rank)

    def _syntax_error(self, error: yaml.MarkedYAMLError) -> ConfigError:
        mark = error.problem_mark or error.context_mark
        place = Place(self.place.source, mark.line + 1, mark.column + 1) if mark else self.place
        hint = "indent with spaces; YAML forbids tabs there" if "\\t" in (error.problem or "") else None
        context = f" {error.context}" if error.context else ""
        return ConfigError(f"{place}: this is not YAML: {error.problem}{context}", hint=hint)

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise ConfigError(f"{self._at(event)}: nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        anchor = event.anchor
        if anchor is not None:
            self.unfinished.add(anchor)
        node, size = self._fresh(event, depth)
        if size > MAX_NODES:
            raise self._too_many(node.place)
        self.sizes[id(node)] = size
        if anchor is not None:
            self.unfinished.discard(anchor)
            self.anchors[anchor] = node
        return node

    def _too_many(self, place: Place) -> ConfigError:
        return ConfigError(f"{place}: more than {MAX_NODES} values, once aliases are unfolded")

    def _alias(self, event: yaml.AliasEvent) -> Node:
        name = cut(str(event.anchor))
        if event.anchor in self.unfinished:
            raise ConfigError(f"{self._at(event)}: *{name} stands inside what it names")
        if event.anchor not in self.anchors:
            raise ConfigError(f"{self._at(event)}: no anchor &{name} stands before *{name}")
        return self.anchors[event.anchor]

    def _fresh(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, depth: int) -> tuple[Node, int]:
        """A new node, and the number of values in it."""
        place = self._at(event)
        if isinstance(event, yaml.ScalarEvent):
            return Node(self._scalar(event, place), place, event.value), 1
        if event.tag is not None and event.tag not in (f"{_TAG}map", f"{_TAG}seq", "!"):
            raise self._unknown_tag(event)
        if isinstance(event, yaml.SequenceStartEvent):
            items = self._items(depth)
            return Node(items, place), 1 + sum(self.sizes[id(item)] for item in items)
        entries = self._entries(depth)
        return Node(entries, place), 1 + sum(self.sizes[id(entry.node)] for entry in entries.values())

    def _unknown_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> ConfigError:
        return ConfigError(f"{self._at(event)}: the tag {cut(str(event.tag))!r} is not allowed; plain values only")

    def _scalar(self, event: yaml.ScalarEvent, place: Place) -> Scalar:
        if event.tag is None:
            return scalar_value(event.value) if event.style is None else str(event.value)
        if event.tag in (f"{_TAG}str", "!"):
            return str(event.value)
        kinds: dict[str, tuple[type, ...]] = {
            "null": (type(None),),
            "bool": (bool,),
            "int": (int,),
            "float": (int, float),
        }
        kind = kinds.get(event.tag.removeprefix(_TAG))
        if kind is None:
            raise self._unknown_tag(event)
        value = scalar_value(event.value)
        if not isinstance(value, kind):
            raise ConfigError(f"{place}: {cut(event.value)!r} does not fit its tag {event.tag!r}")
        return value

    def _items(self, depth: int) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return items

    def _entries(self, depth: int) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        seen: dict[tuple[str, bool], Place] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            place = self._at(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise ConfigError(f"{place}: a key must be a plain name")
            node = self._node(self._next(), depth + 1)
            merges = event.value == "<<" and event.style is None
            before = seen.setdefault((event.value, merges), place)
            if before is not place:
                raise ConfigError(f"{place}: the key {cut(event.value)!r} was set before, at {before}")
            if merges:
                merged = self._merged(node, place)
            else:
                entries[event.value] = Entry(place, node)
        return merged | entries

    def _merged(self, node: Node, place: Place) -> dict[str, Entry]:
        """The keys that ``<<: *anchor`` or ``<<: [*a, *b]`` brings in; of two the first wins."""
        result: dict[str, Entry] = {}
        for source in node.value if isinstance(node.value, list) else [node]:
            if not isinstance(source.value, dict):
                raise ConfigError(f"{source.place}: '<<' merges mappings only")
            self.merged += len(source.value)
            if self.merged > MAX_NODES:  # told here, since every merge makes a mapping of its own
                raise self._too_many(place)
            result = source.value | result
        return result


def read_yaml(path: Path, rank: int = 0) -> Node:
    """The mapping that one YAML file holds.

    Args:
        path: the file, named in messages as it is given.
        rank: see ``Place``.

    Raises:
        ConfigError: if the file cannot be read or is no YAML mapping; with line and column where there are any.
    """
    text = _read_text(path)
    root = _Builder(text, Place(str(path), rank=rank)).document()
    if root is None or root.value is None:
        raise ConfigError(f"{path}: the file is empty")
    if not isinstance(root.value, dict):
        raise ConfigError(f"{root.place}: a task file is a mapping of keys, not {_shape(root)}")
    return root


def _shape(node: Node) -> str:
    return "a list" if isinstance(node.value, list) else f"the single value {node.text[:40]!r}"


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:  # the size says nothing of a device or a pipe
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES // 1024} KiB; this is no task file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace")
        raise ConfigError(f"{_position(path, before)}: a byte that is not UTF-8", hint="save it as UTF-8") from None
    strange = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if strange:
        place = _position(path, text[: strange.start()])
        raise ConfigError(f"{place}: the character {strange[0]!r} is not allowed in YAML")
    return text


def _position(path: Path, before: str) -> Place:
    """The place right after the text ``before``."""
    line = before.count("\n") + 1
    return Place(str(path), line, len(before) - (before.rfind("\n") + 1) + 1)


def load_tree(path: Path) -> Node:
    """A task file together with the files that its ``base_config`` names; the file's own keys win.

    Raises:
        ConfigError: as ``read_yaml``; also if files name each other in a circle.
    """
    return _load(path, (), [])


def _load(path: Path, opened: tuple[Path, ...], read: list[Path]) -> Node:
    """One file with its bases: ``opened`` are the files on the way to it, ``read`` all that were read so far."""
    if path.resolve() in opened:
        raise ConfigError(f"{path}: base_config leads back to this file")
    if len(read) > MAX_BASE_CONFIGS:
        raise ConfigError(f"{path}: base_config is followed through at most {MAX_BASE_CONFIGS} files")
    read.append(path)
    child = read_yaml(path, rank=-len(opened))
    assert isinstance(child.value, dict)
    entry = child.value.pop("base_config", None)
    if entry is None or entry.node.value is None:
        return child
    result: Node | None = None
    for name in _base_names(entry.node):
        base = path.parent / name
        if not (is_there(base) and base.is_file()):
            text = f"base_config names {cut(name)!r}, and {cut(str(base))!r} is not a file"
            raise ConfigError(f"{entry.node.place}: {text}")
        parent = _load(base, (*opened, path.resolve()), read)
        result = parent if result is None else _merge(result, parent)
    return child if result is None else _merge(result, child)


def _base_names(node: Node) -> list[str]:
    items = node.value if isinstance(node.value, list) else [node]
    names = [item.value for item in items if isinstance(item.value, str) and item.value]
    if len(names) != len(items):
        raise ConfigError(f"{node.place}: base_config must be a file name or a list of file names")
    return names


def _merge(base: Node, child: Node) -> Node:
    """Both trees laid over each other: mappings key by key, anything else as a whole."""
    if not (isinstance(base.value, dict) and isinstance(child.value, dict)):
        return child
    entries = dict(base.value)
    for name, entry in child.value.items():
        known = entries.get(name)
        entries[name] = entry if known is None else Entry(entry.key, _merge(known.node, entry.node))
    return Node(entries, child.place)
