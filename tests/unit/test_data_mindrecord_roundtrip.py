"""What MindRecordWriter writes, MindRecordReader reads: all types, shards and page layouts."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from runformer.data.mindrecord import Column, MindRecordReader, MindRecordWriter
from runformer.data.mindrecord.header import LENGTH, dump_header, parse_header
from runformer.data.mindrecord.integers import pack_integers, unpack_integers
from runformer.data.mindrecord.msgpack import pack_map, unpack_map
from runformer.errors import DataError

SMALL: dict[str, Any] = {"header_size": 16 << 10, "page_size": 32 << 10}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


def array(dtype: str, shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    sizes = st.tuples(*(st.integers(0, 40) if size == -1 else st.just(size) for size in shape))
    return arrays.arrays(dtype, sizes)


SHAPES: list[tuple[int, ...]] = [(-1,), (3,), (2, 3), (-1, 2), (1, -1, 2)]
COLUMNS: list[tuple[Column, st.SearchStrategy[Any]]] = [
    (Column("int32"), st.integers(-(2**31), 2**31 - 1)),
    (Column("int64"), st.integers(-(2**63), 2**63 - 1)),
    (Column("float32"), st.floats(width=32, allow_nan=False, allow_infinity=False)),
    (Column("float64"), st.floats(allow_nan=False, allow_infinity=False)),
    (Column("string"), TEXT),
    (Column("bytes"), st.binary(max_size=300)),
    *(
        (Column(kind, shape), array(kind, shape))
        for kind in ("int32", "int64", "float32", "float64")
        for shape in SHAPES
    ),
]


@st.composite
def datasets(draw: st.DrawFn) -> tuple[dict[str, Column], list[dict[str, Any]]]:
    names = draw(
        st.lists(st.from_regex(r"[0-9a-zA-Z_]{1,6}", fullmatch=True), min_size=1, max_size=5, unique_by=str.lower)
    )
    chosen = {name: draw(st.sampled_from(COLUMNS)) for name in names}
    record = st.fixed_dictionaries({name: values for name, (_, values) in chosen.items()})
    return {name: column for name, (column, _) in chosen.items()}, draw(st.lists(record, max_size=8))


def assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        if isinstance(value, np.ndarray):
            assert got[name].dtype == value.dtype
            assert got[name].shape == value.shape
            assert got[name].tobytes() == value.tobytes()
        else:
            assert type(got[name]) is type(value)
            assert got[name] == value


@settings(max_examples=80, deadline=None)
@given(datasets(), st.sampled_from([1, 1, 1, 2, 11]), st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    dataset: tuple[dict[str, Column], list[dict[str, Any]]],
    shards: int,
    indexed: bool,
) -> None:
    schema, records = dataset
    folder = tmp_path_factory.mktemp("dataset")
    with MindRecordWriter(folder / "x.mindrecord", schema, shard_num=shards, **SMALL) as writer:
        writer.write(records[:5])
        writer.write(records[5:])
    files = sorted(path for path in folder.iterdir() if path.suffix != ".db")
    assert len(files) == shards
    if not indexed:
        for file in files:
            file.with_name(f"{file.name}.db").unlink()
    with MindRecordReader(files[-1]) as reader:
        assert dict(reader.schema) == schema
        got = [reader[number] for number in range(len(reader))]
    if shards == 1:
        for mine, want in zip(got, records, strict=True):
            assert_same(mine, want)
    else:
        assert sorted(map(repr, got)) == sorted(repr(dict(sorted(record.items()))) for record in records)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15000), st.integers(0, 15000)), max_size=60), st.integers(1, 9))
def test_pages_of_any_filling_are_read_with_and_without_index(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], step: int
) -> None:
    records: list[dict[str, Any]] = [
        {"b": bytes([n]) * blob, "s": chr(65 + n) * raw} for n, (blob, raw) in enumerate(sizes)
    ]
    path = tmp_path_factory.mktemp("pages") / "x.mindrecord"
    with MindRecordWriter(path, {"b": Column("bytes"), "s": Column("string")}, **SMALL) as writer:
        for begin in range(0, len(records), step):
            writer.write(records[begin : begin + step])
    with MindRecordReader(path) as reader:
        assert [reader[number] for number in range(len(reader))] == records
    path.with_name("x.mindrecord.db").unlink()
    with MindRecordReader(path) as reader:
        assert [reader[number] for number in range(len(reader))] == records


def test_an_open_row_group_moves_when_its_raw_page_is_full(tmp_path: Path) -> None:
    # Group 0 fills a blob page; group 1 shares the raw page until its third record no longer fits there.
    records = [{"b": bytes(16000), "s": "a" * 9000}] * 2 + [{"b": bytes(9000), "s": "b" * 9000}] * 3
    path = tmp_path / "x.mindrecord"
    with MindRecordWriter(path, {"b": Column("bytes"), "s": Column("string")}, **SMALL) as writer:
        for record in records:
            writer.write([record])
    content = path.read_bytes()
    header = parse_header(content[8 : 8 + LENGTH.unpack_from(content)[0]], len(content))
    assert [page.row_groups for page in header.pages if page.kind == "RAW_DATA"] == [[(0, 0)], [(1, 0)]]
    with MindRecordReader(path) as reader:
        assert [reader[number] for number in range(len(reader))] == records


@settings(deadline=None)
@given(arrays.arrays(st.sampled_from(["int32", "int64"]), st.integers(0, 70)))
def test_packed_integers_unpack(values: Any) -> None:
    unpacked = unpack_integers(pack_integers(values), values.dtype)
    assert unpacked.dtype == values.dtype
    assert unpacked.tolist() == values.tolist()


@pytest.mark.parametrize(
    ("values", "packed"),
    [
        ([1, -128, 127], "00000003 00 01 80 7f"),
        ([128, 1, -32769], "00000003 48 8000 01 ff7fffff"),
        ([2**31, 0, 0, 0, -1], "00000005 c000 0000008000000000 00 00 00 ff"),
        ([], "00000000"),
    ],
)
def test_integers_are_packed_in_their_least_width(values: list[int], packed: str) -> None:
    assert pack_integers(np.array(values, dtype=np.int64)).hex() == packed.replace(" ", "")


@settings(deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["int32", "int64"]))
def test_any_bytes_are_packed_integers_or_a_value_error(data: bytes, dtype: str) -> None:
    try:
        values = unpack_integers(data, np.dtype(dtype))
    except ValueError:
        return
    assert len(values) <= len(data)


LONG_TEXT = st.sampled_from(["x" * 255, "é" * 200, "y" * 70000])
SCALARS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), TEXT, LONG_TEXT)


@settings(deadline=None)
@given(st.dictionaries(TEXT, SCALARS, max_size=20))
def test_packed_maps_unpack(values: dict[str, Any]) -> None:
    unpacked = unpack_map(pack_map(values))
    assert unpacked == values
    assert list(map(type, unpacked.values())) == list(map(type, values.values()))


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(lambda tail: b"\x82" + tail)))
def test_any_bytes_are_a_map_or_a_value_error(data: bytes) -> None:
    try:
        unpack_map(data)
    except ValueError:
        return


def test_version_2_keeps_integers_plain(tmp_path: Path) -> None:
    rows = [np.arange(-5, size, dtype="<i4") for size in (3, 0, 9)]
    path = tmp_path / "x.mindrecord"
    with MindRecordWriter(path, {"ids": Column("bytes")}, **SMALL) as writer:
        writer.write([{"ids": row.tobytes()} for row in rows])
    content = path.read_bytes()
    header = parse_header(content[8 : 8 + LENGTH.unpack_from(content)[0]], len(content))
    old = dump_header(replace(header, version="2.0", schema={"ids": Column("int32", (-1,))}))
    path.write_bytes(old.ljust(header.header_size, b"\0") + content[header.header_size :])
    with MindRecordReader(path) as reader:
        assert [reader[number]["ids"].tolist() for number in range(3)] == [row.tolist() for row in rows]


def test_spare_records_go_round_the_shards(tmp_path: Path) -> None:
    with MindRecordWriter(tmp_path / "x", {"k": Column("int32")}, shard_num=3, **SMALL) as writer:
        for number in range(7):
            writer.write([{"k": number}])
    with MindRecordReader(tmp_path / "x1") as reader:
        assert [reader[number]["k"] for number in range(7)] == [0, 3, 6, 1, 4, 2, 5]


def test_some_columns(tmp_path: Path) -> None:
    with MindRecordWriter(tmp_path / "x", {"k": Column("int32"), "b": Column("bytes")}, **SMALL) as writer:
        writer.write([{"k": 1, "b": b"one"}])
    with MindRecordReader(tmp_path / "x") as reader:
        assert list(reader.read_columns(0, ["k"])) == ["k"]
        assert reader.read_columns(0, ["k", "b"]) == {"k": 1, "b": b"one"}
        with pytest.raises(KeyError):
            reader.read_columns(0, ["c"])
        for outside in (1, -1):
            with pytest.raises(IndexError):
                reader[outside]


IDS = {"ids": Column("int32", (-1,))}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "record 1 .*columns .* should be"),
        ({"ids": np.zeros(2, "int32"), "more": 1}, "columns"),
        ({"ids": np.zeros(2, "int64")}, "int64 .* should be an array of int32"),
        ({"ids": np.zeros((2, 2), "int32")}, "should be an array of int32"),
        ({"ids": [1, 2]}, "type list should be an array"),
        ({"ids": np.full(9000, 2**20, "int32")}, "more than a page"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_and_nothing_is_left(tmp_path: Path, record: Any, message: str) -> None:
    with (
        pytest.raises(DataError, match=message),
        MindRecordWriter(tmp_path / "x", IDS, **SMALL) as writer,
    ):
        writer.write([{"ids": np.zeros(2, "int32")}, record])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "value"),
    [("int32", 2**31), ("int32", 1.0), ("int64", True), ("float32", 1e39), ("float64", float("inf")), ("string", b"x")],
)
def test_a_scalar_of_another_kind_is_refused(tmp_path: Path, kind: str, value: Any) -> None:
    writer = MindRecordWriter(tmp_path / "x", {"v": Column(kind)}, **SMALL)
    with pytest.raises(DataError, match="column 'v'"), writer:
        writer.write([{"v": value}])


def test_existing_files_are_only_replaced_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with MindRecordWriter(path, IDS, **SMALL) as writer:
        writer.write([{"ids": np.zeros(2, "int32")}])
    before = path.read_bytes()
    with pytest.raises(DataError, match="exists already"):
        MindRecordWriter(path, IDS, **SMALL)
    with pytest.raises(KeyboardInterrupt), MindRecordWriter(path, IDS, overwrite=True, **SMALL):
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    with MindRecordWriter(path, IDS, overwrite=True, **SMALL):
        pass
    with MindRecordReader(path) as reader:
        assert len(reader) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x", "x.db"]


def test_a_header_that_outgrows_its_room_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="more than header_size"),
        MindRecordWriter(tmp_path / "x", {"b": Column("bytes")}, **SMALL) as writer,
    ):
        writer.write([{"b": bytes(20000)}] * 150)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"header_size": 1000}, "header_size"),
        ({"page_size": (32 << 10) + 2}, "page_size"),
        ({"shard_num": 0}, "shard_num"),
        ({"schema": {}}, "no column"),
        ({"schema": {"a-b": Column("int32")}}, "'a-b'"),
    ],
)
def test_arguments_are_checked(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        MindRecordWriter(tmp_path / "x", **{"schema": IDS, **SMALL, **arguments})


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="cannot be written"),
        MindRecordWriter(tmp_path / "nowhere" / "x", IDS, **SMALL),
    ):
        pass


def write_many(path: Path, records: int) -> None:
    with MindRecordWriter(path, IDS, overwrite=True, shard_num=2, **SMALL) as writer:
        for number in range(records):
            writer.write([{"ids": np.full(2000, number * 2000, "int32")}])


# The limit on the size of a file stops the data in the first case, the index or the last write in the others.
@pytest.mark.parametrize(("limit", "records"), [(40 << 10, 40), (30 << 10, 1), (8 << 10, 0)])
def test_no_room_for_a_file_leaves_the_old_one(tmp_path: Path, limit: int, records: int) -> None:
    write_many(tmp_path / "x", 3)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be written: (File too large|SQLite)"):
            write_many(tmp_path / "x", records)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("shape", [(), (-1, -1), (0,), (-2,)])
def test_shapes_are_checked(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        Column("int32", shape)


@pytest.mark.parametrize(("kind", "shape"), [("int16", None), ("string", (-1,)), ("bytes", (3,))])
def test_types_are_checked(kind: str, shape: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match=kind):
        Column(kind, shape)
