"""Tables from files: the rows that the datasets library itself gives, and what is said where it gives none."""

from __future__ import annotations

import builtins
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tables import json_lines, of_files, opened

from runformer.config.data_sources import TableFiles
from runformer.data.records import Records
from runformer.errors import DataError

pytestmark = pytest.mark.usefixtures("table_cache")
ROWS = [{"number": number, "text": f"é {number}", "ids": list(range(number))} for number in range(7)]


def rows_of(records: Records) -> list[dict[str, Any]]:
    names = records.column_names
    rows = [records.read_columns(number, names) for number in range(len(records))]
    return [
        {name: getattr(value, "tolist", lambda value=value: value)() for name, value in row.items()} for row in rows
    ]


def write(format: str, folder: Path) -> Path:
    path = folder / f"rows.{format}"
    table = datasets.Dataset.from_list(ROWS)
    match format:
        case "json":
            path.write_text(json.dumps(ROWS), encoding="utf-8")
        case "jsonl":
            json_lines(path, ROWS)
        case "jsonl.gz":
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
        case "csv":
            path.write_text("number,text\n" + "".join(f"{row['number']},{row['text']}\n" for row in ROWS), "utf-8")
        case "parquet":
            table.to_parquet(path)
        case "arrow":
            table.save_to_disk(folder / "saved")
            (folder / "saved" / "data-00000-of-00001.arrow").rename(path)
        case "txt":
            path.write_text("".join(f"{row['text']}\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("format", "ending"),
    [
        ("json", "json"),
        ("json", "jsonl"),
        ("json", "jsonl.gz"),
        ("csv", "csv"),
        ("parquet", "parquet"),
        ("arrow", "arrow"),
        ("text", "txt"),
    ],
)
def test_every_format_has_the_librarys_rows(tmp_path: Path, format: str, ending: str) -> None:
    path = write(ending, tmp_path)
    found = opened(of_files(format, path))
    expected = datasets.load_dataset(format, data_files=str(path), split="train", cache_dir=str(tmp_path / "other"))
    assert rows_of(found) == expected.to_list()
    assert (len(found), found.name, found.describe(3)) == (7, str(path), f"{path}, row 3")


@pytest.mark.parametrize("split", ["train", "train[:3]", "train[50%:]", "train[-2:]", "train[1:3]+train[:1]", "test"])
def test_splits_and_parts_of_them(tmp_path: Path, split: str) -> None:
    files = {"train": (json_lines(tmp_path / "a.jsonl", ROWS),), "test": (json_lines(tmp_path / "b.jsonl", ROWS[:2]),)}
    source = TableFiles(tuple(path for paths in files.values() for path in paths), "json", files, split=split)
    texts = {name: [str(path) for path in paths] for name, paths in files.items()}
    expected = datasets.load_dataset("json", data_files=texts, split=split, cache_dir=str(tmp_path / "other"))
    assert rows_of(opened(source)) == expected.to_list()
    assert opened(source).name.endswith("a.jsonl and 1 more")


def test_folders_of_files_and_tables_that_were_saved(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    json_lines(tmp_path / "data" / "train.jsonl", ROWS)
    json_lines(tmp_path / "data" / "test.jsonl", ROWS[:1])
    assert rows_of(opened(TableFiles((tmp_path / "data",)))) == ROWS
    assert rows_of(opened(TableFiles((tmp_path / "data",), split="test"))) == ROWS[:1]
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "dev": table.take(2)}).save_to_disk(tmp_path / "two")
    assert rows_of(opened(TableFiles((tmp_path / "one",), saved=True))) == ROWS
    assert rows_of(opened(TableFiles((tmp_path / "two",), saved=True, split="dev"))) == ROWS[:2]
    with pytest.raises(DataError, match="has no split 'test', but train, dev") as caught:
        opened(TableFiles((tmp_path / "two",), saved=True, split="test"))
    assert caught.value.hint is not None


def test_arguments_reach_the_library(tmp_path: Path) -> None:
    nested = tmp_path / "nested.json"
    nested.write_text(json.dumps({"version": 1, "data": ROWS}))
    assert rows_of(opened(of_files("json", nested, arguments={"field": "data"}))) == ROWS
    semicolons = tmp_path / "x.csv"
    semicolons.write_text("a;b\n1;2\n")
    assert rows_of(opened(of_files("csv", semicolons, arguments={"sep": ";"}))) == [{"a": 1, "b": 2}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}\n\n{"a": 2\n', "x.jsonl, line 3: not JSON at column 8: Expecting ',' delimiter"),
        ('{"a": 1}\n{"a": 2}\nnothing', "x.jsonl, line 3: not JSON at column 1"),
        ('[{"a": 1},\n{"a" 2}]', "x.jsonl, line 2: not JSON at column 6"),
        ("", "x.jsonl: "),
        (b'{"a": "\xff"}\nx', "x.jsonl is not UTF-8 text"),
    ],
)
def test_broken_json_names_file_and_line(tmp_path: Path, text: str | bytes, expected: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        opened(of_files("json", path))
    assert expected in str(caught.value)


def test_other_broken_files_name_file_and_cause(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "x.jsonl", ROWS)
    with pytest.raises(DataError, match=r"x\.jsonl: Parquet magic bytes not found"):
        opened(of_files("parquet", path))
    with pytest.raises(DataError, match=r"x\.jsonl: Unknown split \"dev\". Should be one of \['train'\]"):
        opened(of_files("json", path, split="dev"))
    with pytest.raises(DataError, match=r"x\.jsonl: Unrecognized instruction format: train\[:x\]"):
        opened(of_files("json", path, split="train[:x]"))
    (tmp_path / "uneven.csv").write_text("a,b\n1,2\n3,4,5\n")
    with pytest.raises(DataError, match=r"uneven\.csv: Error tokenizing data.*Expected 2 fields in line 3, saw 3"):
        opened(of_files("csv", tmp_path / "uneven.csv"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"nothing: .*neither a `Dataset` directory nor"):
        opened(TableFiles((tmp_path / "nothing",), saved=True))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_that_names_files_elsewhere_is_not_followed_there(tmp_path: Path, streaming: bool) -> None:
    readme = "---\nconfigs:\n- config_name: default\n  data_files: hf://datasets/somebody/something/x.json\n---\n"
    (tmp_path / "README.md").write_text(readme)
    with pytest.raises(DataError, match="offline mode"):
        opened(TableFiles((tmp_path,), streaming=streaming))


def test_text_that_is_not_utf_8_is_found_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "fine"}\n{"a": "\xff"}\n')
    records = opened(of_files("json", tmp_path / "x.jsonl"))
    assert records.read_columns(0, ["a"]) == {"a": "fine"}
    with pytest.raises(DataError, match=r"x\.jsonl, row 1 is not UTF-8 text"):
        records.read_columns(1, ["a"])


def test_columns_of_tokens(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "x.jsonl", [{"ids": [1, 2], "f": [0.5]}, {"ids": [3, None], "f": []}, {"ids": None}])
    records = opened(of_files("json", path))
    ids = records.read_columns(np.int64(0), ["ids"])["ids"]
    assert isinstance(ids, np.ndarray)
    assert (ids.dtype.kind, ids.tolist()) == ("i", [1, 2])
    assert records.read_columns(0, ["f", "ids"])["f"] == [0.5]
    with pytest.raises(DataError, match=r"row 1: 'ids' holds nulls"):
        records.read_columns(1, ["ids"])
    with pytest.raises(DataError, match=r"row 2: 'ids' is null"):
        records.read_columns(2, ["ids"])
    with pytest.raises(DataError, match="has no column 'id'; it has ids, f") as caught:
        records.read_columns(0, ["id"])
    assert caught.value.hint == "did you mean 'ids'?"


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def fail(name: str, *rest: Any) -> Any:
        if name == "datasets":
            raise ImportError("No module named 'datasets'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(DataError) as caught:
        opened(of_files("json", tmp_path / "x.json"))
    assert caught.value.hint == "pip install 'runformer[data]'"


OPEN = """
import sys
from pathlib import Path
from runformer.config.data_sources import TableFiles
from runformer.data.tables import open_table
path = Path(sys.argv[1])
assert "datasets" not in sys.modules, "the library is imported before it is needed"
records = open_table(TableFiles((path,), "json", {"train": (path,)}), seed=0, pad_token_id=None, section="x")
print(len(records), sum(records.read_columns(number, ["number"])["number"] for number in range(len(records))))
"""


def test_processes_that_open_one_table_at_once(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "x.jsonl", [{"number": number, "text": "x" * 500} for number in range(20_000)])
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", OPEN, str(path)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert output.split() == ["20000", str(sum(range(20_000)))], errors
    assert list((tmp_path / "home" / "datasets").rglob("*.arrow"))
