"""MindRecord in full: what MindSpore writes we read, what we write it reads, and both write the same bytes.

It needs MindSpore, so it is no part of the test suite::

    python3 -m venv /tmp/ms && /tmp/ms/bin/pip install mindspore==2.7.0 pyyaml
    PYTHONPATH=. /tmp/ms/bin/python tests/oracle/mindrecord_check.py

It prints a line for each case and exits with 1 where one differs. With ``--save`` it keeps MindSpore's files of the
smaller cases for ``tests/unit/test_data_mindrecord_layouts.py``, which needs no MindSpore.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
from mindrecord_cases import Case, cases
from mindspore import dataset
from mindspore.mindrecord import FileReader, FileWriter

from runformer.data.inspect.reindex import reindex
from runformer.data.mindrecord import Column, MindRecordReader, MindRecordWriter
from runformer.data.order import sample_order

SAVED = [
    "every_type",
    "integer_bounds",
    "float_bounds",
    "unicode_text",
    "many_columns",
    "no_scalars",
    "some_empty_arrays",
    "exact_fit",
    "exact_fit_of_scalars",
    "page_sized_records",
    "moved_groups",
    "single_calls",
    "indexed_column",
    "no_records",
    "shards_11_even",
    "shards_4_uneven",
    "page_36K_header_20K",
]
ORDERS = [(size, seed) for size in (1, 2, 3, 10, 257, 1000) for seed in (1, 42)] + [(46340, 7), (46341, 7), (50000, 7)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", type=Path, metavar="DIR", help="keep MindSpore's files of the smaller cases there")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only cases whose names contain one of these")
    options = parser.parse_args()
    print(f"MindSpore {mindspore.__version__}, numpy {np.__version__}")
    print(f"{'case':<28} {'records':>7} {'read':<6} {'no .db':<6} {'.db':<6} {'theirs':<6} {'bytes':<6}")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            if not options.only or any(part in case.name for part in options.only):
                wrong += check(case, Path(folder) / case.name)
                if options.save and case.name in SAVED:
                    save(case, Path(folder) / case.name, options.save)
        wrong += check_orders(Path(folder))
    print("all agree" if not wrong else f"{wrong} differ")
    return min(wrong, 1)


def check(case: Case, folder: Path) -> int:
    """Print a line of the table; how many of its cells are wrong."""
    theirs, ours = folder / "theirs", folder / "ours"
    for made in (theirs, ours):
        made.mkdir(parents=True)
    write_ours(case, ours)
    if not case.refused:
        write_theirs(case, theirs)
    checks: list[Callable[[], str]] = [
        lambda: same_records(case, read_ours(case, theirs), ordered=case.shards == 1),
        lambda: same_records(case, read_ours(case, without_index(theirs)), ordered=case.shards == 1),
        lambda: indexes_agree(case, theirs),
        lambda: same_bytes(case, theirs, ours),
    ]
    cells = ["-" if case.refused else told(one) for one in checks]
    cells.insert(3, told(lambda: read_by_both(case, ours)))
    print(f"{case.name:<28} {len(case.records):>7} " + " ".join(f"{cell:<6}" for cell in cells), flush=True)
    return sum(cell not in ("yes", "-") for cell in cells)


def told(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"


def first_file(case: Case, folder: Path) -> Path:
    digits = len(str(case.shards - 1))
    return folder / ("x.mindrecord" if case.shards == 1 else f"x.mindrecord{0:0{digits}}")


def files(case: Case, folder: Path) -> list[Path]:
    digits = len(str(case.shards - 1))
    return (
        [folder / f"x.mindrecord{number:0{digits}}" for number in range(case.shards)]
        if case.shards > 1
        else [first_file(case, folder)]
    )


def calls(case: Case) -> Iterator[list[dict[str, Any]]]:
    for begin in range(0, len(case.records), case.calls):
        yield case.records[begin : begin + case.calls]


def write_theirs(case: Case, folder: Path) -> None:
    writer = FileWriter(str(folder / "x.mindrecord"), case.shards)
    writer.set_header_size(case.header_size)
    writer.set_page_size(case.page_size)
    writer.add_schema(case.schema, case.description)
    if case.index:
        writer.add_index(list(case.index))
    for records in calls(case):
        writer.write_raw_data([dict(record) for record in records], parallel_writer=case.parallel)
    writer.commit()


def write_ours(case: Case, folder: Path) -> None:
    columns = {
        name: Column(about["type"], tuple(about["shape"]) if "shape" in about else None)
        for name, about in case.schema.items()
    }
    sizes = {"header_size": case.header_size, "page_size": case.page_size}
    with MindRecordWriter(
        folder / "x.mindrecord", columns, shard_num=case.shards, description=case.description, **sizes
    ) as writer:
        for records in calls(case):
            writer.write(records)


def read_ours(case: Case, folder: Path) -> list[dict[str, Any]]:
    # Files of a parallel writer know nothing of one another.
    with MindRecordReader(files(case, folder) if case.parallel else first_file(case, folder)) as reader:
        return [dict(reader[number]) for number in range(len(reader))]


def without_index(folder: Path) -> Path:
    copy = folder.with_name(f"{folder.name}_without")
    shutil.copytree(folder, copy)
    for index in copy.glob("*.db"):
        index.unlink()
    return copy


def same_records(case: Case, read: list[dict[str, Any]], *, ordered: bool) -> str:
    got, want = [plain(record) for record in read], [plain(record) for record in case.records]
    if ordered:
        return "yes" if got == want else f"no: {first_difference(got, want)}"
    return "yes" if Counter(map(str, got)) == Counter(map(str, want)) else "no: other records"


def first_difference(got: list[Any], want: list[Any]) -> str:
    if len(got) != len(want):
        return f"{len(got)} records, not {len(want)}"
    number = next(number for number, (one, other) in enumerate(zip(got, want, strict=True)) if one != other)
    names = [name for name in want[number] if got[number].get(name) != want[number][name]]
    return f"record {number}, {names[0]}: {got[number].get(names[0])} is not {want[number][names[0]]}"


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """A record as JSON has it, exactly: floats in hexadecimal, bytes likewise, arrays with dtype and shape."""
    return {name: plain_value(record[name]) for name in sorted(record)}


def plain_value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), value.tobytes().hex()]
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return {"float": value.hex()} if isinstance(value, float) else value


def indexes_agree(case: Case, theirs: Path) -> str:
    """Our comparison finds nothing wrong with MindSpore's index, and MindSpore reads the one that we make."""
    for file in files(case, theirs):
        wrong = [done for done in reindex(file) if done.written]
        if wrong:
            return f"no: {wrong[0]}"
    made = theirs.with_name("theirs_without")
    list(reindex(made if case.parallel else first_file(case, made)))
    return read_by_both(case, made)


def read_by_both(case: Case, folder: Path) -> str:
    """MindSpore's two readers against ours: the same records in the same order."""
    expected = read_ours(case, folder)
    if not case.records:
        return "-"  # neither of them opens a dataset without records
    given = [str(file) for file in files(case, folder)] if case.parallel else str(first_file(case, folder))
    for read in (read_by_dataset, read_by_file_reader):
        got = list(read(given, case))
        for number, (one, other) in enumerate(zip(got, expected, strict=True)):
            for name, value in other.items():
                if name in one and plain_value(one[name]) != plain_value(value):
                    return f"no: {read.__name__} record {number} {name}: {one[name]!r} is not {value!r}"
    return "yes"


def read_by_dataset(given: Any, case: Case) -> Iterator[dict[str, Any]]:
    """MindDataset; it makes something up for empty arrays and bytes, which are left out."""
    data = dataset.MindDataset(given, shuffle=False, num_parallel_workers=1)
    for record in data.create_dict_iterator(num_epochs=1, output_numpy=True):
        values = {}
        for name, value in record.items():
            kind, shaped = case.schema[name]["type"], "shape" in case.schema[name]
            if shaped and value.ndim == len(case.schema[name]["shape"]):
                values[name] = value
            elif kind == "bytes" and value.tobytes() != b"\0":
                values[name] = value.tobytes()
            elif not shaped and kind != "bytes":
                values[name] = str(value) if kind == "string" else value.item()
        yield values


def read_by_file_reader(given: Any, case: Case) -> Iterator[dict[str, Any]]:
    """FileReader; it gives whole floats as integers, so scalar floats are left out."""
    reader = FileReader(given, num_consumer=1)
    for record in reader.get_next():
        yield {
            name: value
            for name, value in record.items()
            if "shape" in case.schema[name] or not case.schema[name]["type"].startswith("float")
        }
    reader.close()


def same_bytes(case: Case, theirs: Path, ours: Path) -> str:
    """Whether the files are equal: "-" where MindSpore spreads records by chance, or has other tables."""
    if case.parallel or (case.name.endswith(("uneven", "single_calls")) and case.shards > 1):
        return "-"
    for one, other in zip(files(case, theirs), files(case, ours), strict=True):
        if not case.index and one.read_bytes() != other.read_bytes():
            return "no: data"
        if not case.index and rows_of(one) != rows_of(other):
            return "no: index"
    return "-" if case.index else "yes"


def rows_of(file: Path) -> list[Any]:
    with closing(sqlite3.connect(f"{file}.db")) as index:
        queries = ["SELECT name, sql FROM sqlite_master", "SELECT * FROM SHARD_NAME", "SELECT * FROM INDEXES"]
        return [index.execute(query).fetchall() for query in queries]


def check_orders(folder: Path) -> int:
    """MindDataset(shuffle=True) visits records in our order, two epochs long, from one file and from four."""
    wrong = 0
    for size, seed in ORDERS:
        for shards in (1, 4) if size > 4 else (1,):
            case = Case("order", {"k": {"type": "int32"}, "b": {"type": "bytes"}}, [], shards=shards)
            path = folder / f"order_{size}_{seed}_{shards}"
            path.mkdir()
            columns = {"k": Column("int32"), "b": Column("bytes")}
            with MindRecordWriter(path / "x.mindrecord", columns, shard_num=shards) as writer:
                writer.write([{"k": number, "b": b"b"} for number in range(size)])
            mindspore.set_seed(seed)
            data = dataset.MindDataset(str(first_file(case, path)), ["k"], shuffle=True)
            iterator = data.create_tuple_iterator(num_epochs=2, output_numpy=True)
            order = sample_order(size, "reference", seed)
            same = all([int(row[0]) for row in iterator] == order.epoch(epoch).tolist() for epoch in range(2))
            wrong += not same
            print(f"order of {size}, seed {seed}, {shards} shards".ljust(36), "yes" if same else "no")
            shutil.rmtree(path)
    return wrong


def save(case: Case, folder: Path, target: Path) -> None:
    """MindSpore's files and the records in their order, in one archive without dates."""
    target.mkdir(parents=True, exist_ok=True)
    about = {
        "mindspore": mindspore.__version__,
        "files": [file.name for file in files(case, folder / "theirs")],
        "schema": case.schema,
        "description": case.description,
        "header_size": case.header_size,
        "page_size": case.page_size,
        "calls": case.calls,
        "index": list(case.index),
        "records": [plain(record) for record in read_ours(case, folder / "theirs")],
    }
    with zipfile.ZipFile(target / f"{case.name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("about.json"), json.dumps(about, ensure_ascii=False), zipfile.ZIP_DEFLATED)
        for file in files(case, folder / "theirs"):
            for kept in (file, Path(f"{file}.db")):
                archive.writestr(zipfile.ZipInfo(kept.name), kept.read_bytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    sys.exit(main())
