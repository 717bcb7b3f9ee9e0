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
    return open_mindrecord(options.source.paths)


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
