"""How many tokens each record has, found out once.

Packing has to know that of all records before the first row can be made. Where records are encoded it takes a while, so
the answer is kept in the cache of the ``datasets`` library, under a name that hangs on data, tokenizer and options: the
processes of a machine share it, and the next run has it at once.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import xxhash

from runformer.data.records import Records
from runformer.data.tables.encode import EncodedRecords
from runformer.data.tables.library import load_library
from runformer.data.tables.pick import PickedRecords
from runformer.data.tables.table import Lengths, TableRecords

logger = logging.getLogger(__name__)

_WORTH_KEEPING, _WORTH_A_WORD = 1000, 50_000  # records


def document_lengths(records: Records) -> Lengths:
    """The tokens of every record: int64, (records,).

    Raises:
        DataError: a record is damaged, or is not what it should be.
    """
    match records:
        case TableRecords():
            return records.lengths("input_ids")
        case PickedRecords():
            return document_lengths(records.records)[records.numbers]
        case EncodedRecords():
            return _kept(records)
    sizes = (
        np.asarray(records.read_columns(number, ["input_ids"])["input_ids"]).size for number in range(len(records))
    )
    return np.fromiter(sizes, dtype=np.int64, count=len(records))


def _kept(records: EncodedRecords) -> Lengths:
    identity = _identity(records)
    if identity is None or len(records) < _WORTH_KEEPING:
        return records.lengths()
    from filelock import FileLock  # the library needs it as well

    folder = Path(load_library().config.HF_DATASETS_CACHE) / "runformer"
    file = folder / f"{xxhash.xxh3_128_hexdigest(identity.encode())}.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # of the processes of a machine one counts, and the others wait for it
            known = _read(file, len(records))
            if known is None and len(records) >= _WORTH_A_WORD:
                logger.info(
                    "%s: its %d records are encoded once, to find how long they are", records.name, len(records)
                )
            return _write(file, records.lengths()) if known is None else known
    except OSError as error:
        logger.warning("%s: how long its records are is not kept for the next run: %s", records.name, error)
        return records.lengths()


def _read(file: Path, count: int) -> Lengths | None:
    try:
        lengths: Lengths = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or damaged
        return None
    return lengths if lengths.shape == (count,) and lengths.dtype == np.int64 else None


def _write(file: Path, lengths: Lengths) -> Lengths:
    beside = file.with_suffix(f".{os.getpid()}.npy")
    np.save(beside, lengths)
    beside.replace(file)
    return lengths


def _identity(records: Records) -> str | None:
    """What the lengths hang on, in words; None where code of plug-ins has a part in it, or nothing is known."""
    match records:
        case EncodedRecords():
            below = _identity(records.records)
            return below and f"{below}|{records.options}|{records.tokenizer.fingerprint}"
        case PickedRecords():
            below = _identity(records.records)
            return below and f"{below}|{xxhash.xxh3_128_hexdigest(records.numbers.tobytes())}"
        case TableRecords():
            files = [Path(entry["filename"]) for entry in records.table.cache_files]
            states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            return f"{records.table._fingerprint}|{records.table.column_names}|{len(records)}|{states}"
    return None
