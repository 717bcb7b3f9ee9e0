"""From ``train_dataset`` or ``eval_dataset`` to the DataOptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from runformer.config.problems import Report, nearest
from runformer.config.resolve_loader import note_other_keys
from runformer.config.resolve_megatron import megatron_files, megatron_options
from runformer.config.resolve_mindrecord import mindrecord_files, plugin_handlers
from runformer.config.resolve_mixture import mixture_options
from runformer.config.resolve_tables import table_options
from runformer.config.sections import Config
from runformer.config.sections.data import MEGATRON, MIXTURE, REFUSED_LOADERS, TABLES, Dataset
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
    note_other_keys(loader, f"{section}.data_loader", report)
    source = _source(dataset, section, report)
    found = DataOptions(
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
    if isinstance(source, MegatronFiles):
        return megatron_options(found, source, dataset, model, report)
    if loader.type in TABLES:
        return table_options(found, config, section, model, report)
    if loader.type == MIXTURE:
        return mixture_options(found, config, section, model, report)
    return found


def _handlers(dataset: Dataset, section: Section, report: Report) -> tuple[PluginOptions, ...]:
    if dataset.data_loader.type in (*TABLES, MIXTURE):
        return ()
    return plugin_handlers(dataset.data_loader, f"{section}.data_loader", report)


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
    return "reference" if asked == "reference" else "hashed"


def _source(dataset: Dataset, section: Section, report: Report) -> DataSource:
    kind = dataset.data_loader.type or "MindDataset"
    if kind in _SOURCES:
        return _SOURCES[kind](dataset, section, report)
    if kind not in (*TABLES, MIXTURE):
        _refuse_loader(kind, f"{section}.data_loader", report)
    return MindRecordFiles(())


def _refuse_loader(kind: str, path: str, report: Report) -> None:
    known = (*_SOURCES, *TABLES, MIXTURE)
    if kind in REFUSED_LOADERS:
        report.error(f"{path}.type", f"is {kind!r}, which is not read: {REFUSED_LOADERS[kind]}")
        return
    near = nearest(kind, known)
    suggestion = f"; did you mean {near!r}?" if near else ""
    report.error(f"{path}.type", f"is {kind!r}{suggestion} Supported: {', '.join(known)}")


def _mindrecord(dataset: Dataset, section: Section, report: Report) -> MindRecordFiles:
    return mindrecord_files(dataset.data_loader, f"{section}.data_loader", f"{section}_dir", report)


_SOURCES: Mapping[str, Callable[[Dataset, Section, Report], DataSource]] = {
    "MindDataset": _mindrecord,
    MEGATRON: megatron_files,
}
