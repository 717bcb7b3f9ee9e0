"""What is done with bytes from anywhere: each target reads them, and lets through what no reader should raise.

A target takes bytes and raises only where a reader does what it should not: another exception than the documented
one, or two ways to read the same thing that do not agree. Beside each is valid input for it, to be changed from there.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from text_targets import TEXT_TARGETS
from workplace import workplace

from runformer.data.inspect.indexed import IndexedDocuments
from runformer.data.inspect.reindex import reindex
from runformer.data.megatron import IndexedDataset, IndexedWriter
from runformer.data.mindrecord import Column, MindRecordReader, MindRecordWriter
from runformer.data.mindrecord.header import LENGTH, dump_header, parse_header
from runformer.data.mindrecord.integers import pack_integers, unpack_integers
from runformer.data.mindrecord.msgpack import pack_map, unpack_map
from runformer.data.native import native
from runformer.data.records import Records, RowLengthError
from runformer.errors import DataError

SCHEMA = {
    "ids": Column("int32", (-1,)),
    "long": Column("int64", (-1,)),
    "rest": Column("float32", (-1, 2)),
    "raw": Column("bytes"),
    "text": Column("string"),
    "k": Column("int64"),
    "x": Column("float64"),
}


def mindrecord_file(data: bytes) -> None:
    """A data file without an index."""
    path = workplace() / "file.mindrecord"
    path.write_bytes(data)
    with suppress(DataError), MindRecordReader([path]) as reader:
        read_everything(reader)


def index_of_short_records(data: bytes) -> None:
    """The index beside a sound file of which not every record's place is kept; what is made of it is the right one."""
    _index("short", data, length=5)


def index_of_long_records(data: bytes) -> None:
    """Likewise of one whose places are those of the index."""
    _index("long", data, length=2000)


def _index(name: str, data: bytes, length: int) -> None:
    path = workplace() / f"{name}.mindrecord"
    if not path.exists():
        path.write_bytes(sound_file(compact=False, length=length))
    index = path.with_name(f"{path.name}.db")
    index.write_bytes(data)
    with suppress(DataError), MindRecordReader(path) as reader:
        read_everything(reader)
    list(reindex(path))
    [again] = reindex(path)
    assert not again.written, again


def read_everything(reader: MindRecordReader) -> None:
    """Every record, and every column of integers many records at a time, in both ways."""
    for record in range(len(reader)):
        with suppress(DataError):
            check_types(reader, reader[record])
    for name, column in reader.schema.items():
        if column.is_integer_array and len(reader):
            read_both_ways(reader, name)


def check_types(reader: MindRecordReader, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        column = reader.schema[name]
        if column.shape is not None:
            assert isinstance(value, np.ndarray)
            assert value.dtype == column.dtype
            assert len(value.shape) == len(column.shape)
        else:
            assert type(value) is {"string": str, "bytes": bytes, "float32": float, "float64": float}.get(
                column.type, int
            )


def read_both_ways(reader: MindRecordReader, name: str) -> None:
    """Compiled code gives what Python gives; where Python finds nothing wrong it does not either."""
    numbers = range(len(reader))
    try:
        length = reader.read_columns(0, [name])[name].size
        slow = Records.read_rows(reader, numbers, [name], length)
    except (DataError, RowLengthError):
        with suppress(DataError, RowLengthError):
            reader.read_rows(numbers, [name], 3)
        return
    fast = reader.read_rows(numbers, [name], length)
    assert np.array_equal(slow[0], fast[0])


def msgpack_map(data: bytes) -> None:
    """A record's scalars."""
    try:
        values = unpack_map(data)
    except ValueError:
        return
    again = unpack_map(pack_map(values))
    assert again.keys() == values.keys()
    for name, value in values.items():
        same = again[name] == value or (
            isinstance(value, float) and math.isnan(value) and math.isnan(float(again[name]))
        )
        assert same, (value, again[name])


def packed_integers(data: bytes) -> None:
    """A record's array, by Python and by compiled code."""
    for dtype in (np.dtype("<i4"), np.dtype("<i8")):
        count = int.from_bytes(data[:4], "big")
        try:
            values = unpack_integers(data, dtype)
        except ValueError:
            values = None
        if values is not None:
            assert values.size == count
            assert np.array_equal(unpack_integers(pack_integers(values), dtype), values)
        if native is not None and count <= len(data):
            compiled = by_native(data, count, dtype.itemsize)
            assert (compiled is None) == (values is None)
            assert values is None or np.array_equal(compiled, values)


def by_native(data: bytes, count: int, width: int) -> Any:
    """The array of one record by compiled code; None: it says that it is none."""
    content = LENGTH.pack(len(data)) + data
    out = np.zeros((1, count), dtype=np.int64)
    if count == 0:  # nobody asks for rows of nothing
        return unpacked_or_none(data, width)
    rows, groups, places = (
        np.array([0]),
        (np.array([0, 1]), np.array([0, 2]), np.array([0])),
        np.array([0, len(content)]),
    )
    table = *groups, places.astype(np.uint32), np.array([True])
    assert native is not None
    bad = native.unpack_rows(content, rows, *table, 1, 0, 1, width, True, out)
    return None if bad >= 0 else out[0]


def unpacked_or_none(data: bytes, width: int) -> Any:
    try:
        return unpack_integers(data, np.dtype(f"<i{width}"))
    except ValueError:
        return None


def megatron_index(data: bytes) -> None:
    """``PREFIX.idx`` beside a data file, whose size in bytes is the first two of these bytes."""
    prefix = workplace() / "indexed"
    size = int.from_bytes(data[:2], "little")
    Path(f"{prefix}.bin").write_bytes(bytes(size))
    Path(f"{prefix}.idx").write_bytes(data[2:])
    try:
        dataset = IndexedDataset(prefix)
    except DataError:
        return
    total = sum(len(dataset[sequence]) for sequence in range(len(dataset)))
    assert total == len(dataset.tokens) == size // dataset.dtype.itemsize
    documents = IndexedDocuments(prefix)
    assert sum(documents.read_columns(record, ["tokens"])["tokens"].size for record in range(len(documents))) == total


def sound_file(*, compact: bool, records: int = 6, length: int = 5) -> bytes:
    """A file of all types with ``length`` ids a record; ``compact`` leaves out the unused parts of header and pages."""
    path = workplace() / "sound.mindrecord"
    rows = np.arange(40, dtype="int32")
    with MindRecordWriter(path, SCHEMA, header_size=16 << 10, page_size=32 << 10, overwrite=True) as writer:
        writer.write(
            [
                {
                    "ids": np.resize(rows[:5] * 7**number, length),
                    "long": rows[:number].astype("int64") << number * 9,
                    "rest": np.ones((number, 2), "float32"),
                    "raw": bytes([number]) * number,
                    "text": "é" * number,
                    "k": -(10**number),
                    "x": number / 3,
                }
                for number in range(records)
            ]
        )
    content = path.read_bytes()
    return compacted(content) if compact else content


def compacted(content: bytes) -> bytes:
    header = parse_header(content[8 : 8 + LENGTH.unpack_from(content)[0]], len(content))
    parts = [content[header.page_begin(page.page_id) :][: page.used] for page in header.pages]
    size = max([LENGTH.size, *map(len, parts)])
    header = replace(header, page_size=size, header_size=10000)
    header = replace(header, header_size=len(dump_header(header)) - 1)  # that number has a digit less
    return dump_header(header) + b"".join(part.ljust(size, b"\0") for part in parts)


def _index_seed(length: int) -> Iterator[bytes]:
    sound_file(compact=False, length=length)
    yield (workplace() / "sound.mindrecord.db").read_bytes()
    yield b""


def _packed_seeds() -> Iterator[bytes]:
    for values in ([], [1], [-1, 300, 70000, 2**40, 5], list(range(50)), [2**31 - 1, -(2**31)] * 9):
        yield pack_integers(np.array(values, dtype="int64"))


def _msgpack_seeds() -> Iterator[bytes]:
    yield pack_map({"id": 0})
    yield pack_map({"k": -(2**40), "text": "é" * 40, "x": 1.5, "y": 0.1, "z": 200, "w": 70000})
    yield pack_map({f"c{number}": number * -70 for number in range(20)})


def _megatron_seeds() -> Iterator[bytes]:
    prefix = workplace() / "seed"
    for rows in ([], [[1, 2, 3], [], [4] * 9], [[number] for number in range(12)]):
        with IndexedWriter(prefix, "uint16", overwrite=True) as writer:
            for row in rows:
                writer.add(np.array(row, dtype="uint16"))
        size = Path(f"{prefix}.bin").stat().st_size
        yield struct.pack("<H", size) + Path(f"{prefix}.idx").read_bytes()


TARGETS: Mapping[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "mindrecord_file": (mindrecord_file, lambda: iter([sound_file(compact=True), sound_file(compact=True, records=0)])),
    "index_of_short_records": (index_of_short_records, lambda: _index_seed(5)),
    "index_of_long_records": (index_of_long_records, lambda: _index_seed(2000)),
    "msgpack_map": (msgpack_map, _msgpack_seeds),
    "packed_integers": (packed_integers, _packed_seeds),
    "megatron_index": (megatron_index, _megatron_seeds),
    **TEXT_TARGETS,
}
"""Name → (what is done with an input, valid inputs)."""


def words() -> list[bytes]:
    """What a fuzzer would take long to find by itself."""
    keys = [
        json.dumps(name)
        for name in ("page_size", "end_row_id", "row_group_ids", "RAW_DATA", "BLOB_DATA", "2.0", "shape")
    ]
    numbers = [struct.pack("<q", number) for number in (-1, 2**31, 2**62, 8)]
    return [
        *(key.encode() for key in keys),
        *numbers,
        b"SQLite format 3\0",
        b"MMIDIDX\0\0",
        b"\xff" * 4,
        b"-1",
        b"null",
    ]
