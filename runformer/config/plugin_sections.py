"""Sections whose ``type`` names a plug-in: their keys are the plug-in's parameters."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runformer.config.problems import Report, nearest
from runformer.config.yaml_file import Entry
from runformer.plugins.registry import REGISTRY, Kind, Registration, parameters_of

_ABOUT_THE_SECTION = ("type", "auto_register")
# Keys that the run reads itself whatever the plug-in is, and the least value of each.
_OWN_KEYS: dict[Kind, dict[str, float]] = {
    "optimizer": {"weight_decay": 0, "learning_rate": 0},
    "schedule": {"total_steps": -1},
}


@dataclass(frozen=True, slots=True)
class PluginSection:
    """Such a section as it was read: ``keys`` are arguments of the plug-in, ``own`` what the run reads itself."""

    type: str
    keys: Mapping[str, Any]
    own: Mapping[str, float]


def read_plugin(
    plugin: Registration, entries: Mapping[str, Entry], values: Mapping[str, Any], path: str, report: Report
) -> PluginSection:
    """Check a section's keys against the parameters of its plug-in; what is wrong goes into ``report``.

    Args:
        plugin: what the section's ``type`` names.
        entries: the section's keys with their places.
        values: the same keys with plain values; null means: not given.
        path: of the section, such as ``callbacks[0]``.
        report: where problems go.
    """
    takes = parameters_of(plugin)
    own_keys = _OWN_KEYS.get(plugin.kind, {})
    known = (*takes.required, *takes.optional, *own_keys)
    keys: dict[str, Any] = {}
    own: dict[str, float] = {}
    for name, entry in entries.items():
        report.record(f"{path}.{name}", f"{path}.{name}", entry.key if entry.key.on_command_line else entry.node.place)
        if name in _ABOUT_THE_SECTION or values[name] in (None, "None"):
            continue
        if name in own_keys:
            own |= _number(name, values[name], own_keys[name], path, report)
        elif name in known or takes.takes_any:
            keys[name] = values[name]
        else:
            text = f"is not a key of the {plugin} ({plugin.place}){_did_you_mean(name, known)}"
            report.error(f"{path}.{name}", text, entry.key)
    for name in takes.required:
        if name not in keys and name not in own_keys:
            report.error(path, f"lacks {name!r}, which the {plugin} ({plugin.place}) needs")
    return PluginSection(plugin.name, keys, own)


def _number(name: str, value: object, least: float, path: str, report: Report) -> dict[str, float]:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= sys.float_info.max:
        report.error(f"{path}.{name}", f"must be a number, at least {least:g}, not {value!r}")
        return {}
    return {name: value}


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f": did you mean {near!r}?" if near else ""


def unknown_type(kind: Kind, name: str, built_in: Iterable[str]) -> str:
    """What to say of a ``type`` that is neither built in nor registered."""
    known = (*built_in, *REGISTRY.of_kind(kind))
    supported = f"Supported: {', '.join(known)}, and plug-ins" if known else "It names a plug-in, found"
    near = nearest(name, known)
    return f"is {name!r}{f'; did you mean {near!r}?' if near else '.'} {supported} in the folder of --register_path"
