"""The files of a MindDataset, and the plug-ins that change their records."""

from __future__ import annotations

import re
from pathlib import Path

from runformer.config.paths import by_flag, display, existing
from runformer.config.plugin_sections import PluginSection, unknown_type
from runformer.config.problems import Report
from runformer.config.sections.data import REFUSED_LOADERS, SubLoader
from runformer.config.task import MindRecordFiles, PluginOptions

_DATASET_FILE = re.compile(r"mindrecord\d*$")
_TFRECORD = (".tfrecord", ".tfrecords")


def mindrecord_files(loader: SubLoader, path: str, flag: str, report: Report) -> MindRecordFiles:
    """The files that a loader names; ``path`` is its place in the task file, ``flag`` that of the command line.

    Raises:
        ConfigError: one of them is not there.
    """
    key = "dataset_files" if loader.dataset_files and not loader.dataset_dir else "dataset_dir"
    names = getattr(loader, key) or []
    if not names:
        report.fill_in(f"{path}.dataset_dir", f"is not set{by_flag(flag, ': --{} PATH gives the dataset')}")
        return MindRecordFiles(())
    listed = [names] if isinstance(names, str) else names
    return MindRecordFiles(tuple(file for name in listed for file in _files(name, f"{path}.{key}", flag, report)))


def _files(name: str, key: str, flag: str, report: Report) -> list[Path]:
    """One file as it is; of a folder, every file in it whose name ends in mindrecord and digits, in natural order."""
    path = existing(report, key, name, flag=flag)
    if path is None:
        return []
    if path.suffix in _TFRECORD:
        report.error(key, f"is {name!r}, a TFRecord file: {REFUSED_LOADERS['TFRecordDataset']}")
    if not path.is_dir():
        return [path]
    files = [file for file in path.rglob("*") if _DATASET_FILE.search(file.name) and file.is_file()]
    if not files:
        text = f"is {name!r}: no file in the folder {display(path)} has a name that ends in mindrecord"
        raise report.failure(key, text + by_flag(flag))
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts ``x.mindrecord2`` before ``x.mindrecord10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def plugin_handlers(loader: SubLoader, path: str, report: Report) -> tuple[PluginOptions, ...]:
    """The data handlers of rows that have tokens already: all are plug-ins."""
    handlers = loader.handler or []
    for index, item in enumerate(handlers):
        if not isinstance(item, PluginSection) and loader.type in (None, "MindDataset"):
            report.error(f"{path}.handler[{index}].type", unknown_type("data_handler", item.type or "", ()))
    return tuple(PluginOptions(item.type, item.keys) for item in handlers if isinstance(item, PluginSection))
