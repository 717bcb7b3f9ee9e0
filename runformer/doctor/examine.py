"""All examinations, in the order in which their findings are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from runformer.doctor import network, software, system
from runformer.doctor.finding import Finding, problem


def examine(folder: Path) -> Iterator[Finding]:
    """Everything that is found, one by one. An examination that breaks is a finding itself.

    Args:
        folder: where runs would write.
    """
    examinations: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("versions", software.versions),
        ("devices", software.devices),
        ("processors", system.processors),
        ("memory", system.memory),
        ("limits", system.limits),
        ("disk", lambda: system.disk(folder)),
        ("clock", system.clock),
        ("interfaces", network.interfaces),
        ("port", network.port),
        ("variables", network.variables),
        ("compiler", software.compiler),
        ("reader", software.reader),
        ("all-reduce", software.all_reduce),
    )
    for topic, look in examinations:
        try:
            yield from look()
        except Exception as error:  # whatever breaks here would break a run in a less obvious place
            yield problem(topic, f"it cannot be looked at: {type(error).__name__}: {error}", "this is worth a report")
