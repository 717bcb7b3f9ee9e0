"""What all kinds of ``data_loader`` have in common where they are made sense of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from runformer.config.problems import Report
from runformer.config.schema import OFF, slots_of
from runformer.config.sections import Config
from runformer.config.sections.data import LOADER_KEYS, Dataset, SubLoader
from runformer.config.sections.reasons import OTHER_LOADER
from runformer.config.task import ModelTask


@dataclass(frozen=True, slots=True)
class LoaderPlace:
    """Where a loader stands in a task file, and what its rows are for."""

    path: str
    config: Config
    dataset: Dataset
    model: ModelTask
    report: Report

    def error(self, key: str, text: str) -> None:
        """A problem with one of the loader's keys."""
        self.report.error(f"{self.path}.{key}", text)


def note_other_keys(loader: SubLoader, path: str, report: Report) -> None:
    """A key that another kind of loader reads does nothing beside this one."""
    own = LOADER_KEYS.get(loader.type or "MindDataset")
    for name, slot in slots_of(cast(type, type(loader))).items():
        given = name == slot.name and slot.key.role in ("sets", "group") and report.given(f"{path}.{name}")
        if own is not None and given and name not in own and getattr(loader, name) not in OFF:
            report.no_effect(f"{path}.{name}", OTHER_LOADER)
