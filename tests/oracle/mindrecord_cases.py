"""Small MindRecord datasets, one for each way in which a file can be laid out; MindSpore and we write the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

KIB = 1 << 10
Records = list[dict[str, Any]]
Schema = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A dataset: its schema as MindSpore takes it, its records, and how a writer is to be used.

    ``calls`` records are given to the writer at a time; ``index`` names the columns that ``add_index`` is called with.
    MindSpore's writer refuses a ``refused`` one; what we write of it should be read all the same.
    """

    name: str
    schema: Schema
    records: Records
    calls: int = 7
    page_size: int = 32 * KIB
    header_size: int = 16 * KIB
    shards: int = 1
    parallel: bool = False
    index: tuple[str, ...] = ()
    description: str = "a case"
    refused: bool = False


def cases() -> Iterator[Case]:
    """All of them; the same ones on every call."""
    yield from (make() for make in _MAKERS)
    yield from _one_column_each()
    yield from _sizes_and_shards()


def ids(*shape: int) -> dict[str, Any]:
    return {"type": "int32", "shape": list(shape)}


def repeated(number: int, length: int) -> Any:
    """Few different numbers: files of them compress to almost nothing."""
    return np.resize(np.arange(number, number + 5, dtype="int32"), length)


def every_type() -> Case:
    schema: Schema = {kind: {"type": kind} for kind in ("int32", "int64", "float32", "float64", "string", "bytes")}
    for kind in ("int32", "int64", "float32", "float64"):
        for name, shape in {"any": [-1], "3": [3], "2x3": [2, 3], "anyx2": [-1, 2], "2xany": [2, -1]}.items():
            schema[f"{kind}_{name}"] = {"type": kind, "shape": shape}
    return Case("every_type", schema, [_any_record(schema, number) for number in range(1, 12)])


def _any_record(schema: Schema, number: int) -> dict[str, Any]:
    random = np.random.default_rng(number)
    record: dict[str, Any] = {}
    for name, column in schema.items():
        kind = column["type"]
        if "shape" in column:
            shape = [number if size == -1 else size for size in column["shape"]]
            values = random.normal(size=shape) * 10.0 ** random.integers(-3, 9)
            record[name] = values.astype(kind)
        elif kind == "string":
            record[name] = chr(0x40 + number) * number
        elif kind == "bytes":
            record[name] = random.bytes(number)
        elif kind == "float32":
            record[name] = float(np.float32(random.normal()))
        else:
            record[name] = float(random.normal()) if kind == "float64" else int(random.integers(-(2**30), 2**30))
    return record


def integer_bounds() -> Case:
    """Every width of packed integers, and every length of msgpack's."""
    edges = [
        sign * (1 << bits) + near for bits in (0, 5, 7, 8, 15, 16, 31, 32) for near in (-1, 0, 1) for sign in (1, -1)
    ]
    wide = np.array([*edges, -(2**63), 2**63 - 1, 2**62, -(2**62) - 1], dtype="int64")
    narrow = wide[np.abs(wide.astype(float)) < 2.0**31].astype("int32")
    records = [
        {
            "a": np.roll(narrow, number),
            "b": np.roll(wide, number),
            "k": int(wide[number % wide.size]),
            "i": int(narrow[number % narrow.size]),
        }
        for number in range(wide.size)
    ]
    return Case(
        "integer_bounds",
        {"a": ids(-1), "b": {"type": "int64", "shape": [-1]}, "k": {"type": "int64"}, "i": {"type": "int32"}},
        records,
    )


def float_bounds() -> Case:
    """Floats that msgpack keeps short, and those that it cannot."""
    values = [0.0, -0.0, 1.0, -1.5, 0.1, 1e300, -1e-300, 5e-324, 1e-45, 3.4028234663852886e38, 2.0**60, 1 / 3]
    records = [
        {
            "x": value,
            "y": float(np.float32(min(max(value, -3e38), 3e38))),
            "v": np.array([value, np.inf, -np.inf, np.nan]),
        }
        for value in values
    ]
    schema: Schema = {"x": {"type": "float64"}, "y": {"type": "float32"}, "v": {"type": "float64", "shape": [-1]}}
    return Case("float_bounds", schema, records)


def unicode_text() -> Case:
    texts = [
        "",
        "a",
        "é" * 15,
        "é" * 16,
        "漢字かな",
        "👩‍👩‍👧",
        "\u202edlrow",
        "x" * 31,
        "x" * 32,
        "y" * 255,
        "y" * 256,
        "z" * 9000,
        "'\"\\;--",
        "line\nline\ttab",
    ]
    records = [{"text": text, "ids": repeated(number, 4)} for number, text in enumerate(texts)]
    return Case(
        "unicode_text", {"text": {"type": "string"}, "ids": ids(-1)}, records, description='Größe 漢字 "quoted"'
    )


def many_columns() -> Case:
    """More scalars than msgpack's short maps have."""
    schema: Schema = {f"c{number:02}": {"type": "int32"} for number in range(20)}
    schema |= {
        "Upper_1": {"type": "string"},
        "9digit": {"type": "float32", "shape": [1]},
        "order": {"type": "int32"},
        "Z": ids(2, 2),
    }
    records = [
        {
            **{f"c{column:02}": number * column for column in range(20)},
            "Upper_1": str(number),
            "9digit": np.ones(1, "float32"),
            "order": number,
            "Z": np.full((2, 2), number, "int32"),
        }
        for number in range(9)
    ]
    return Case("many_columns", schema, records)


def digit_first() -> Case:
    records = [{"9digit": number, "k": number, "ids": repeated(number, 3)} for number in range(9)]
    return Case(
        "digit_first", {"9digit": {"type": "int64"}, "k": {"type": "int32"}, "ids": ids(-1)}, records, refused=True
    )


def no_arrays() -> Case:
    records = [{"k": number, "s": "s" * (number % 7)} for number in range(40)]
    return Case("no_arrays", {"k": {"type": "int64"}, "s": {"type": "string"}}, records, calls=11)


def no_scalars() -> Case:
    records = [
        {"b": bytes([number]) * (number % 5 + 1), "ids": repeated(number, number % 3 + 1)} for number in range(40)
    ]
    return Case("no_scalars", {"b": {"type": "bytes"}, "ids": ids(-1)}, records, calls=11)


def some_empty_arrays() -> Case:
    records = [
        {
            "a": repeated(1, number % 3),
            "b": b"b" * (number % 2),
            "f": np.ones(number % 4, "float32"),
            "full": repeated(2, 3),
        }
        for number in range(24)
    ]
    schema: Schema = {"a": ids(-1), "b": {"type": "bytes"}, "f": {"type": "float32", "shape": [-1]}, "full": ids(3)}
    return Case("some_empty_arrays", schema, records)


def exact_fit() -> Case:
    """Blob pages that are full to the last byte: 8 bytes of length and 4088 of content, eight times."""
    records = [{"b": bytes([number]) * 4088, "k": number} for number in range(40)]
    return Case("exact_fit", {"b": {"type": "bytes"}, "k": {"type": "int32"}}, records, calls=10)


def exact_fit_of_scalars() -> Case:
    """Raw pages that are full to the last byte: a length, a map of one text, which takes 1 + 2 + 3 bytes beside it."""
    records = [{"s": chr(97 + number % 26) * (4096 - 8 - 6), "ids": repeated(number, 2)} for number in range(40)]
    return Case("exact_fit_of_scalars", {"s": {"type": "string"}, "ids": ids(-1)}, records, calls=10)


def a_record_as_large_as_a_page() -> Case:
    whole = 32 * KIB - 8
    records = [
        {"b": bytes([number]) * size, "k": number} for number, size in enumerate([whole, 1, whole, whole, 2, 3, whole])
    ]
    return Case("page_sized_records", {"b": {"type": "bytes"}, "k": {"type": "int32"}}, records, calls=3)


def moved_groups() -> Case:
    """Large scalars: the rows of an open group outgrow their raw page again and again, and move to a new one."""
    records = [
        {"s": chr(97 + number % 26) * (number * 977 % 9000), "ids": repeated(number, 300)} for number in range(60)
    ]
    return Case("moved_groups", {"s": {"type": "string"}, "ids": ids(-1)}, records, calls=2)


def many_pages() -> Case:
    records = [{"ids": np.full(7000, number, "int64"), "k": number} for number in range(240)]
    return Case(
        "many_pages",
        {"ids": {"type": "int64", "shape": [-1]}, "k": {"type": "int32"}},
        records,
        calls=16,
        header_size=64 * KIB,
    )


def single_calls() -> Case:
    records = [{"ids": repeated(number, 900 + number), "k": number} for number in range(50)]
    return Case("single_calls", {"ids": ids(-1), "k": {"type": "int32"}}, records, calls=1)


def indexed_column() -> Case:
    records = [
        {"ids": repeated(number, 5), "k": number * 3 % 50, "s": str(number), "x": number / 7} for number in range(50)
    ]
    schema: Schema = {"ids": ids(-1), "k": {"type": "int32"}, "s": {"type": "string"}, "x": {"type": "float64"}}
    return Case("indexed_column", schema, records, index=("k",))


def indexed_columns() -> Case:
    return Case(**{**vars(indexed_column()), "name": "indexed_columns", "index": ("s", "k")})


def no_records() -> Case:
    return Case("no_records", {"ids": ids(-1), "k": {"type": "int32"}}, [])


def parallel_writer() -> Case:
    records = [{"ids": repeated(number, 50), "k": number} for number in range(44)]
    return Case("parallel_writer", {"ids": ids(-1), "k": {"type": "int32"}}, records, calls=44, shards=4, parallel=True)


_MAKERS: list[Callable[[], Case]] = [
    every_type,
    integer_bounds,
    float_bounds,
    unicode_text,
    many_columns,
    digit_first,
    no_arrays,
    no_scalars,
    some_empty_arrays,
    exact_fit,
    exact_fit_of_scalars,
    a_record_as_large_as_a_page,
    moved_groups,
    many_pages,
    single_calls,
    indexed_column,
    indexed_columns,
    no_records,
    parallel_writer,
]


def _one_column_each() -> Iterator[Case]:
    """A file with nothing but one column, of every type and shape."""
    whole = every_type()
    for name, column in whole.schema.items():
        records = [{name: record[name]} for record in whole.records]
        yield Case(f"only_{name}", {name: column}, records)


def _sizes_and_shards() -> Iterator[Case]:
    schema: Schema = {"ids": ids(-1), "k": {"type": "int32"}, "s": {"type": "string"}}
    records = [
        {"ids": repeated(number, number * 37 % 3000 + 1), "k": number, "s": "s" * (number % 40)}
        for number in range(132)
    ]
    for page_size, header_size in [(36, 20), (64, 16), (1024, 32), (32 * KIB, 16 * KIB)]:
        name = f"page_{page_size}K_header_{header_size}K"
        yield Case(name, schema, records, page_size=page_size * KIB, header_size=header_size * KIB, calls=33)
    for shards in (2, 4, 11):
        yield Case(f"shards_{shards}_even", schema, records, shards=shards, calls=44)
    # The spare records of a call go to shards by chance, and so do those of calls with fewer records than shards.
    yield Case("shards_4_uneven", schema, records, shards=4, calls=7)
    yield Case("shards_11_uneven", schema, records, shards=11, calls=5)
    yield Case("shards_4_single_calls", schema, records[:30], shards=4, calls=1)
