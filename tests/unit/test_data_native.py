"""What is compiled does what is written in Python beside it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from runformer.data import _native
from runformer.data.mindrecord import Column, MindRecordReader, MindRecordWriter, reader, rows
from runformer.data.mindrecord.header import LENGTH
from runformer.data.mindrecord.integers import pack_integers
from runformer.data.native import is_current
from runformer.data.order import shuffle_in_python, shuffle_like_libstdcxx
from runformer.data.records import RowLengthError
from runformer.errors import DataError

SMALL: dict[str, Any] = {"header_size": 16 << 10, "page_size": 32 << 10}
WIDTHS = st.sampled_from([7, 15, 31, 63])


def integers(kind: str, length: int) -> st.SearchStrategy[Any]:
    """Arrays whose values take one, two, four or eight bytes as it comes."""
    bits = WIDTHS if kind == "int64" else st.sampled_from([7, 15, 31])
    number = bits.flatmap(lambda width: st.integers(-(1 << width), (1 << width) - 1))
    return arrays.arrays(kind, (length,), elements=number)


def test_what_was_compiled_for_other_code_is_not_used() -> None:
    assert is_current(_native)
    assert not is_current(None)
    assert not is_current(SimpleNamespace())  # type: ignore[arg-type]
    assert not is_current(SimpleNamespace(CONTRACT=0))  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_packed_integers(data: st.DataObject) -> None:
    kind, length = data.draw(st.sampled_from(["int32", "int64"])), data.draw(st.integers(1, 70))
    fields = data.draw(st.integers(1, 3))
    columns = [data.draw(integers(kind, length)) for _ in range(fields)]
    parts = [pack_integers(column) for column in columns]
    body = parts[0] if fields == 1 else b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    record = LENGTH.pack(len(body)) + body
    width = np.dtype(kind).itemsize
    for field, column in enumerate(columns):
        assert unpack([record, record], field, fields, width, length).tolist() == [column.tolist()] * 2
    assert unpack([record], fields - 1, fields, width, length + 1) is None
    cut = data.draw(st.integers(0, len(record) - 1))
    assert unpack([record[:cut]], 0, fields, width, length) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.integers(1, 3), st.integers(1, 20), st.booleans())
def test_any_bytes_are_read_or_refused(body: bytes, fields: int, length: int, packed: bool) -> None:
    record = LENGTH.pack(len(body)) + body
    for width in (4, 8):
        unpack([record], fields - 1, fields, width, length, packed=packed)


def unpack(records: list[bytes], field: int, fields: int, width: int, length: int, packed: bool = True) -> Any:
    """The rows, or None where they are refused."""
    ends = np.cumsum([0, *map(len, records)])
    out = np.empty((len(records), length), "int64")
    found = -1
    for stride in (1, 2, 5):
        places = np.append(ends[:-1:stride], ends[-1:]).astype("uint32")
        table = np.array([0, len(records)]), np.array([0, len(places)]), np.array([0]), places, np.ones(1, dtype=bool)
        numbers = np.arange(len(records))
        form = field, fields, width, packed
        found = max(found, _native.unpack_rows(b"".join(records), numbers, *table, stride, *form, out))
    return out if found == -1 else None


def test_arguments_that_do_not_fit_are_refused() -> None:
    one, places, known = np.array([0]), np.zeros(2, "uint32"), np.ones(1, dtype=bool)
    table = [np.array([0, 1]), np.array([0, 2]), one, places, known, 1]
    good: list[Any] = [b"x", one, *table, 0, 1, 4, True, np.zeros((1, 4), "int64")]
    assert _native.unpack_rows(*good) == 0
    for position, wrong in [
        (1, one[:0]), (2, one), (3, one), (5, places[:1]), (6, known[:0]), (7, 0), (8, 1), (8, -1), (10, 2),
        (12, np.zeros(4, "int32")),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="do not fit each other"):
            _native.unpack_rows(*good[:position], wrong, *good[position + 1 :])
    with pytest.raises(ValueError, match="int64"):
        _native.shuffle(np.zeros(3, "int32"), 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit each other"):
        _native.blend(np.ones(2), np.ones(1), np.zeros(2), np.zeros(3, "int16"), np.zeros(3, "int64"))
    assert _native.unpack_rows(*good[:1], np.array([7]), *good[2:]) == 0  # there is no such row
    assert not _native.boundaries(b"x", 0, 2, 1, 1, np.zeros(2, "uint32"))
    assert not _native.boundaries(b"x", 0, 1, 3, 1, np.zeros(2, "uint32"))


@given(
    st.lists(st.binary(max_size=20), max_size=8),
    st.integers(0, 9),
    st.integers(0, 9),
    st.binary(max_size=3),
    st.integers(1, 4),
)
def test_walking_from_record_to_record(
    bodies: list[bytes], count: int, begin: int, garbage: bytes, stride: int
) -> None:
    data = b"?" * begin + b"".join(LENGTH.pack(len(body)) + body for body in bodies) + garbage
    compiled, plain = (np.zeros(-(-count // stride) + 1, "uint32") for _ in range(2))
    found = _native.boundaries(data, begin, len(data), count, stride, compiled)
    assert found == rows.boundaries(data, begin, len(data), count, stride, plain)
    assert found == (count == len(bodies) and not garbage)
    if found:
        assert compiled.tolist() == plain.tolist()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 100, 101, 46340, 46341])
def test_shuffles(size: int) -> None:
    for seed in (0, 1, 2**31 - 1, 2**32 + 5):
        compiled, plain = np.arange(size), np.arange(size)
        shuffle_like_libstdcxx(compiled, seed)
        shuffle_in_python(plain, seed)
        assert (compiled == plain).all()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "x.mindrecord"
    generator = np.random.default_rng(0)
    schema = {"ids": Column("int32", (-1,)), "more": Column("int64", (-1,)), "text": Column("string")}
    with MindRecordWriter(path, schema, shard_num=3, **SMALL) as writer:
        for number in range(40):
            ids = generator.integers(-200, 200_000, 700, "int32") if number != 30 else np.zeros(4, "int32")
            record: dict[str, Any] = {"ids": ids, "more": ids.astype("int64") << 20, "text": str(number)}
            writer.write([record])
    return path.with_name("x.mindrecord0")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), indexed=st.booleans())
def test_rows_of_several_shards(
    shards: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject, indexed: bool
) -> None:
    files = sorted(shards.parent.glob("x.mindrecord[0-2]"))
    with monkeypatch.context() as patched, MindRecordReader(files) as plain, MindRecordReader(files) as compiled:
        if not indexed:
            patched.setattr("runformer.data.mindrecord.reader.index_path", lambda path: path / "none")
        sound = [record for record in range(40) if len(plain[record]["ids"]) == 700]
        records = data.draw(st.lists(st.sampled_from(sound), min_size=1, max_size=9))
        found = compiled.read_rows(records, ["more", "ids"], 700)
        patched.setattr(reader, "native", None)
        for one, other in zip(found, plain.read_rows(records, ["more", "ids"], 700), strict=True):
            assert (one == other).all()
        assert found[1][0].tolist() == plain[records[0]]["ids"].tolist()


def test_a_record_that_is_refused_is_explained(shards: Path, tmp_path: Path) -> None:
    with MindRecordReader(shards) as records:
        short = next(record for record in range(40) if len(records[record]["ids"]) == 4)
        with pytest.raises(RowLengthError) as error:
            records.read_rows([0, short], ["ids"], 700)
        assert (error.value.record, error.value.size) == (short, 4)
    damaged = tmp_path / "x.mindrecord"
    content = bytearray(shards.with_name("x.mindrecord1").read_bytes())
    begin = SMALL["header_size"] + LENGTH.size + 8  # of the first record's first array
    content[begin : begin + 4] = (701).to_bytes(4, "big")
    damaged.write_bytes(content)
    with (
        MindRecordReader([damaged]) as records,
        pytest.raises(DataError, match=r"record 0 of .* is damaged: column 'ids'"),
    ):
        records.read_rows([0], ["ids"], 701)
