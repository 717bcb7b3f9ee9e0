"""Loading the plug-ins that a task may name, before its keys are read."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from runformer.config.families import BUILT_IN_FAMILIES, check_options, node_at
from runformer.config.problems import Report
from runformer.config.resolve_train import OPTIMIZERS, SCHEDULE_ALIASES, SCHEDULES
from runformer.config.sections.training import CALLBACKS
from runformer.config.yaml_file import Node
from runformer.errors import ConfigError
from runformer.plugins.load import Wanted, load_plugins
from runformer.plugins.registry import REGISTRY, WORDS, Kind, shown

_BUILT_IN: dict[Kind, Collection[str]] = {
    "optimizer": OPTIMIZERS,
    "schedule": (*SCHEDULES, *SCHEDULE_ALIASES),
    "callback": CALLBACKS,
    "data_handler": (),
    "model_family": BUILT_IN_FAMILIES,
}
# Where a task names what a plug-in may give; of a list each item.
_PLACES: dict[str, Kind] = {
    "optimizer": "optimizer",
    "lr_schedule": "schedule",
    "callbacks": "callback",
    "train_dataset.data_loader.handler": "data_handler",
    "eval_dataset.data_loader.handler": "data_handler",
    "model.model_config": "model_family",
    "model.arch": "model_family",
}


def find_plugins(root: Node, register_path: Path | None, report: Report) -> tuple[str, ...]:
    """Run the plug-ins of the register path, so that their names are known; the files that were run.

    Raises:
        ConfigError: they are not safe to run, fail, lack what the task names, or replace what is built in.
    """
    if register_path is None:
        return ()
    files = load_plugins(register_path, list(_wanted(root)), trusted=_is_trusted(root))
    _check_names()
    for family in REGISTRY.of_kind("model_family").values():
        check_options(family, family.target.options)
    if files:
        report.notice("plug-ins: " + ", ".join(_describe(file) for file in files))
    return tuple(shown(file) for file in files)


def _is_trusted(root: Node) -> bool:
    """A file must not vouch for the code that came with it, so only the command line counts."""
    node = node_at(root, "trust_remote_code")
    return node is not None and node.value is True and node.place.on_command_line


def _wanted(root: Node) -> Iterator[Wanted]:
    """Every ``auto_register`` beside a ``type`` that is not built in."""
    for path, kind in _PLACES.items():
        section = node_at(root, path)
        items = section.value if section is not None and isinstance(section.value, list) else [section]
        for index, item in enumerate(items):
            name = node_at(item, "type") if item is not None else None
            reference = node_at(item, "auto_register") if item is not None else None
            if name is None or reference is None or not isinstance(name.value, str) or _is_built_in(kind, name.value):
                continue
            if isinstance(reference.value, str) and reference.value not in ("", "None"):
                key = f"{path}[{index}]" if items[0] is not section else path
                yield Wanted(kind, name.value, reference.value, str(reference.place), f"{key}.auto_register")


def _is_built_in(kind: Kind, name: str) -> bool:
    return name.lower() in {known.lower() for known in _BUILT_IN[kind]}


def _check_names() -> None:
    for kind, word in WORDS.items():
        for name, registration in REGISTRY.of_kind(kind).items():
            if _is_built_in(kind, name):
                raise ConfigError(
                    f"{registration.place}: the {word} {name!r} is built in, and a plug-in cannot replace it",
                    hint="register it under another name",
                )


def _describe(file: Path) -> str:
    parts = ", ".join(dict.fromkeys(map(str, REGISTRY.of_file(file))))
    return f"{shown(file)} ({parts})" if parts else shown(file)
