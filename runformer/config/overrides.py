"""Overrides: values from the command line that are written into the tree of a task file."""

from __future__ import annotations

from dataclasses import dataclass

from runformer.config.problems import Place
from runformer.config.schema import spell
from runformer.config.yaml_file import Entry, Node
from runformer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Override:
    """One value for one dotted path, and the flag that gave it."""

    path: str
    node: Node

    @property
    def place(self) -> Place:
        """The flag."""
        return self.node.place


def apply(root: Node, override: Override) -> None:
    """Write one override into a tree. Sections missing on the way are made; a number names an item of a list.

    A section that stands in two places by a YAML alias changes in both.

    Raises:
        ConfigError: if something on the way is a plain value.
    """
    *parents, leaf = override.path.split(".")
    current = root
    for depth, name in enumerate(parents):
        current = _child(current, name, ".".join(parents[:depth]), override.place)
    if isinstance(current.value, list) and _is_index(leaf, current.value):
        current.value[int(leaf)] = override.node
    elif isinstance(current.value, dict):
        current.value[leaf] = Entry(override.place, override.node)
    else:
        raise _no_section(current, ".".join(parents), override.place)


def _child(current: Node, name: str, path: str, place: Place) -> Node:
    if isinstance(current.value, list) and _is_index(name, current.value):
        return current.value[int(name)]
    if not isinstance(current.value, dict):
        raise _no_section(current, path, place)
    entry = current.value.get(name)
    if entry is None or entry.node.value is None:
        entry = current.value[name] = Entry(place, Node({}, place))
    return entry.node


def _is_index(name: str, items: list[Node]) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 6 and int(name) < len(items)


def _no_section(node: Node, path: str, place: Place) -> ConfigError:
    return ConfigError(f"{place}: {path} is {spell(node)}, so no key can be set inside it")
