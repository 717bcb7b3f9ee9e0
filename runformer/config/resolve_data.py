"""From ``train_dataset`` or ``eval_dataset`` to the DataOptions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from runformer.config.paths import display, existing
from runformer.config.plugin_sections import PluginSection, unknown_type
from runformer.config.problems import Report, nearest
from runformer.config.resolve_megatron import megatron_files, megatron_options
from runformer.config.sections import Config
from runformer.config.sections.data import LOADERS, Dataset
from runformer.config.sections.reasons import OTHER_LOADER
from runformer.config.task import (
    DataOptions,
    DataSource,
    DocumentOptions,
    MegatronFiles,
    MindRecordFiles,
    ModelTask,
    PaddingOptions,
    PluginOptions,
    Shuffle,
)

Section = Literal["train_dataset", "eval_dataset"]

_DATASET_FILE = re.compile(r"mindrecord\d*$")
_DEFAULT_COLUMNS = ("input_ids",)


def data_options(config: Config, section: Section, model: ModelTask, report: Report) -> DataOptions:
    """One dataset of the task.

    Raises:
        ConfigError: if it is not there, or not of a kind that can be read.
    """
    dataset: Dataset = getattr(config, section)
    loader = dataset.data_loader
    options = config.model.model_config
    training = section == "train_dataset"
    source = _source(dataset, section, report)
    result = DataOptions(
        source=source,
        columns=tuple(dataset.input_columns or _DEFAULT_COLUMNS),
        shuffle=_shuffle(loader.shuffle, training),
        seed=config.seed if dataset.seed is None else dataset.seed,
        num_samples=loader.num_samples,
        # What is left over must count in a perplexity, and would make a shorter step in training.
        drop_remainder=training if dataset.drop_remainder is None else dataset.drop_remainder,
        repeat=dataset.repeat if training else 1,
        already_shifted=options.input_sliced_sig,
        pad_token_id=model.options.pad_token_id if model.options else model.overrides.get("pad_token_id"),
        ignore_token_id=options.ignore_token_id,
        documents=_documents(dataset, section, report),
        padding=PaddingOptions(dataset.divisor, dataset.remainder) if dataset.dynamic_batch else None,
        section=section,
        handlers=_handlers(dataset, section, report),
    )
    return megatron_options(result, source, dataset, model, report) if isinstance(source, MegatronFiles) else result


def _handlers(dataset: Dataset, section: Section, report: Report) -> tuple[PluginOptions, ...]:
    handlers = dataset.data_loader.handler or []
    for index, item in enumerate(handlers):
        if not isinstance(item, PluginSection) and dataset.data_loader.type in (None, "MindDataset"):
            path = f"{section}.data_loader.handler[{index}].type"
            report.error(path, unknown_type("data_handler", item.type or "", ()))
    return tuple(PluginOptions(item.type, item.keys) for item in handlers if isinstance(item, PluginSection))


def _documents(dataset: Dataset, section: Section, report: Report) -> DocumentOptions | None:
    if not dataset.eod_reset:
        return None
    if dataset.eod_token_id is None:
        report.error(f"{section}.eod_reset", f"needs {section}.eod_token_id: the token that ends a document")
        return None
    return DocumentOptions(dataset.eod_token_id)


def _shuffle(asked: bool | str | None, training: bool) -> Shuffle | None:
    if asked is None:
        asked = training
    if isinstance(asked, bool):
        return "reference" if asked else None
    return "hashed" if asked == "hashed" else "reference"


def _source(dataset: Dataset, section: Section, report: Report) -> DataSource:
    kind = dataset.data_loader.type or "MindDataset"
    for key in {key for keys in _OWN_KEYS.values() for key in keys} - set(_OWN_KEYS.get(kind, ())):
        if report.given(f"{section}.data_loader.{key}"):
            report.no_effect(f"{section}.data_loader.{key}", OTHER_LOADER)
    if kind in _SOURCES:
        return _SOURCES[kind](dataset, section, report)
    _refuse_loader(kind, f"{section}.data_loader", report)
    return MindRecordFiles(())


def _refuse_loader(kind: str, path: str, report: Report) -> None:
    supported = ", ".join(_SOURCES)
    if kind in LOADERS:
        report.not_built(f"{path}.type", f"is {kind!r}, which cannot be read yet; supported: {supported}")
        return
    near = nearest(kind, (*_SOURCES, *LOADERS))
    suggestion = f"; did you mean {near!r}?" if near else ""
    report.error(f"{path}.type", f"is {kind!r}{suggestion} Supported: {supported}")


def _mindrecord(dataset: Dataset, section: Section, report: Report) -> MindRecordFiles:
    loader, path = dataset.data_loader, f"{section}.data_loader"
    key = "dataset_files" if loader.dataset_files and not loader.dataset_dir else "dataset_dir"
    names = getattr(loader, key) or []
    if not names:
        report.fill_in(f"{path}.dataset_dir", f"is not set: --{section}_dir PATH gives the dataset")
        return MindRecordFiles(())
    listed = [names] if isinstance(names, str) else names
    return MindRecordFiles(
        tuple(file for name in listed for file in _files(name, f"{path}.{key}", f"{section}_dir", report))
    )


_SOURCES: Mapping[str, Callable[[Dataset, Section, Report], DataSource]] = {
    "MindDataset": _mindrecord,
    "BlendedMegatronDatasetDataLoader": megatron_files,
}
# Keys that only one loader reads.
_OWN_KEYS: Mapping[str, tuple[str, ...]] = {
    "BlendedMegatronDatasetDataLoader": ("config", "datasets_type", "sizes", "phase"),
}


def _files(name: str, key: str, flag: str, report: Report) -> list[Path]:
    """One file as it is; of a folder, every file in it whose name ends in mindrecord and digits, in natural order."""
    path = existing(report, key, name, flag=flag)
    if path is None:
        return []
    if not path.is_dir():
        return [path]
    files = [file for file in path.rglob("*") if _DATASET_FILE.search(file.name) and file.is_file()]
    if not files:
        text = f"is {name!r}: no file in the folder {display(path)} has a name that ends in mindrecord"
        raise report.failure(key, f"{text} (--{flag} PATH gives another)")
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts ``x.mindrecord2`` before ``x.mindrecord10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]
