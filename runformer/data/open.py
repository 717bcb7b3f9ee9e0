"""Opening the source of a dataset, whichever kind it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from runformer.config.data_sources import MegatronFiles, MindRecordFiles, Mixture, TableFiles
from runformer.config.task import DataOptions
from runformer.data.handlers import HandledRecords
from runformer.data.megatron.records import MegatronRecords
from runformer.data.mindrecord import MindRecordReader
from runformer.data.mixture import MixedRecords
from runformer.data.records import Records
from runformer.data.tables import open_table
from runformer.data.tables.pick import PickedRecords
from runformer.errors import DataError

_MINDRECORD_NAME = re.compile(r"mindrecord\d*$")


def open_records(options: DataOptions) -> Records:
    """The records of a dataset, as its handlers leave them.

    Raises:
        DataError: a file is not there or damaged; a handler fails.
        ConfigError: a handler cannot be made.
    """
    records = _open_source(options)
    return HandledRecords(records, options.handlers, options.section) if options.handlers else records


def _open_source(options: DataOptions) -> Records:
    match options.source:
        case TableFiles():
            return _open_table(options.source, options)
        case Mixture():
            return _open_mixture(options.source, options)
        case MegatronFiles():
            return MegatronRecords(options.source)
        case MindRecordFiles():
            return open_mindrecord(options.source.paths)


def _open_table(source: TableFiles, options: DataOptions) -> Records:
    return open_table(source, seed=options.seed, pad_token_id=options.pad_token_id, section=options.section)


def _open_mixture(mixture: Mixture, options: DataOptions) -> Records:
    parts = []
    for part in mixture.parts:
        records = open_records(replace(options, source=part.source, handlers=part.handlers))
        used = len(records) if part.num_samples is None else part.num_samples
        parts.append(PickedRecords(records, np.arange(used)) if used < len(records) else records)
    names = [part.name for part in mixture.parts]
    return MixedRecords(parts, names, mixture.counts, mixture.shuffle, options.seed)


def open_mindrecord(paths: Sequence[Path]) -> MindRecordReader:
    """One file brings its shards along; several files, or those of a folder, are just these.

    Raises:
        DataError: a file is not there or damaged, or a folder holds none.
    """
    if len(paths) == 1 and not paths[0].is_dir():
        return MindRecordReader(paths[0])
    return MindRecordReader([file for path in paths for file in mindrecord_files(path)])


def mindrecord_files(path: Path) -> list[Path]:
    """The MindRecord files anywhere in a folder, by name; of a file itself.

    Raises:
        DataError: the folder holds none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if _MINDRECORD_NAME.search(file.name))
    if not found:
        raise DataError(f"{path} holds no file whose name ends in 'mindrecord' (and a number)")
    return found
