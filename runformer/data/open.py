"""Opening the source of a dataset, whichever kind it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from runformer.config.task import DataOptions, MegatronFiles
from runformer.data.handlers import HandledRecords
from runformer.data.megatron.records import MegatronRecords
from runformer.data.mindrecord import MindRecordReader
from runformer.data.records import Records
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
    if isinstance(options.source, MegatronFiles):
        return MegatronRecords(options.source)
    return _open_mindrecord(options.source.paths)


def _open_mindrecord(paths: Sequence[Path]) -> MindRecordReader:
    """One file brings its shards along; several files, or those of a folder, are just these."""
    if len(paths) == 1 and not paths[0].is_dir():
        return MindRecordReader(paths[0])
    files: list[Path] = []
    for path in paths:
        found = (
            sorted(file for file in path.rglob("*") if _MINDRECORD_NAME.search(file.name)) if path.is_dir() else [path]
        )
        if not found:
            raise DataError(f"{path} holds no file whose name ends in 'mindrecord' (and a number)")
        files += found
    return MindRecordReader(files)
