"""Which files are meant, of which kind they are, and what is said of those that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from byte_tokenizer import write_byte_tokenizer
from preparing import prepared, rows, spoken

from runformer.data.prepare.sources import find_sources
from runformer.data.prepare.streams import ByteStream
from runformer.errors import DataError
from runformer.tokenizer import load_tokenizer

RECORDS = [{"instruction": f"Say {n}.", "output": f"{n}"} for n in range(40)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def zstd(data: bytes) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def answers(tokenizer: Path, target: Path) -> list[str]:
    loaded = load_tokenizer(tokenizer)
    return [spoken(loaded, row["labels"]).removesuffix("<|end|>") for row in rows(target)]


EXPECTED = [record["output"] for record in RECORDS]


@pytest.mark.parametrize("name", COMPRESS)
def test_compressed_files(tokenizer: Path, tmp_path: Path, name: str) -> None:
    data = COMPRESS[name](LINES)
    (tmp_path / f"x.jsonl.{name}").write_bytes(data)
    prepared(tmp_path / f"x.jsonl.{name}", tmp_path / "out", tokenizer)
    assert answers(tokenizer, tmp_path / "out") == EXPECTED
    # The content counts, where the name says nothing.
    (tmp_path / "y.jsonl").write_bytes(data)
    (source,) = find_sources([str(tmp_path / "y.jsonl")])
    assert (source.kind, source.compression) == ("json_lines", name)
    with ByteStream(source.path, source.compression, 100) as stream:
        assert stream.read(50) + stream.read(1 << 20) == LINES[100:]


@pytest.mark.parametrize("name", COMPRESS)
def test_compressed_files_that_are_cut_off(tokenizer: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"x.jsonl.{name}"
    data = COMPRESS[name](LINES)
    for kept in (len(data) // 2, len(data) - 5):
        path.write_bytes(data[:kept])
        with pytest.raises(DataError, match=rf"x\.jsonl\.{name} is (damaged|cut off)") as caught:
            prepared(path, tmp_path / "out", tokenizer)
        assert caught.value.hint == "copy or download it again"
        assert sorted(file.name for file in tmp_path.iterdir()) == [path.name]


def test_compressed_files_that_are_damaged(tokenizer: Path, tmp_path: Path) -> None:
    for name, compress in COMPRESS.items():
        data = bytearray(compress(LINES * 20))
        data[len(data) // 2] ^= 0xFF
        path = tmp_path / f"x.jsonl.{name}"
        path.write_bytes(data)
        with pytest.raises(DataError, match=rf"x\.jsonl\.{name}"):
            prepared(path, tmp_path / "out", tokenizer)


def write_all(folder: Path) -> None:
    """The same records, a quarter a file, in four kinds."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(RECORDS[:10], indent=1))
    text = "instruction,output\n" + "".join(f"{each['instruction']},{each['output']}\n" for each in RECORDS[10:20])
    (folder / "b.csv").write_text(text)
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS[20:30]), folder / "c.parquet")
    (folder / "sub").mkdir()
    (folder / "sub" / "d.ndjson.gz").write_bytes(gzip.compress(b"\n".join(LINES.splitlines()[30:])))
    (folder / "README.md").write_text("not a record")
    (folder / ".hidden.json").write_text("neither")


def test_folders_and_patterns(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path / "data")
    prepared(tmp_path / "data", tmp_path / "folder", tokenizer)
    assert answers(tokenizer, tmp_path / "folder") == EXPECTED
    prepared([f"{tmp_path}/data/?.*", tmp_path / "data" / "sub"], tmp_path / "pattern", tokenizer)
    assert answers(tokenizer, tmp_path / "pattern") == EXPECTED
    monkeypatch.chdir(tmp_path / "data")
    prepared(["c.parquet", "*.parquet", "b.csv"], Path("out"), tokenizer)
    assert answers(tokenizer, Path("out")) == EXPECTED[20:30] + EXPECTED[10:20]


def test_what_the_datasets_library_saves(tokenizer: Path, tmp_path: Path) -> None:
    import datasets

    whole = datasets.Dataset.from_list(RECORDS)
    whole.save_to_disk(tmp_path / "one", num_shards=3)
    prepared(tmp_path / "one", tmp_path / "x", tokenizer)
    assert answers(tokenizer, tmp_path / "x") == EXPECTED
    both = datasets.DatasetDict(test=whole.select(range(3)), train=whole.select(range(3, 40)).shuffle(seed=1))
    both.save_to_disk(tmp_path / "both")
    prepared(tmp_path / "both", tmp_path / "train", tokenizer)
    assert answers(tokenizer, tmp_path / "train") == list(both["train"]["output"])
    prepared(tmp_path / "both" / "test", tmp_path / "test", tokenizer)
    assert answers(tokenizer, tmp_path / "test") == EXPECTED[:3]
    del both["train"]
    both["valid"] = whole
    both.save_to_disk(tmp_path / "none")
    with pytest.raises(DataError, match="holds the splits test, valid") as caught:
        prepared(tmp_path / "none", tmp_path / "y", tokenizer)
    assert caught.value.hint == f"name one: {tmp_path / 'none'}/SPLIT"
    (tmp_path / "one" / "state.json").write_text('{"_data_files": [3]}')
    with pytest.raises(DataError, match="not what save_to_disk writes"):
        find_sources([str(tmp_path / "one")])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", b"no", "is no Parquet file"),
        ("x.parquet", b"PAR1" + b"x" * 40, "is damaged or cut off"),
        ("x.arrow", b"ARROW" * 20, "is damaged or cut off"),
        ("x.json.gz", b"[]", "is named as compressed, but does not begin so"),
        ("x.docx", b"PK", "neither its name nor its beginning tells what kind of file it is"),
        ("x.jsonn", b"PK", "neither its name"),
        ("x.csv", b"question,answer\n1,2\n", "line 2: the columns (question, answer) are of no known format"),
    ],
)
def test_files_that_are_something_else(
    tokenizer: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        prepared(tmp_path / name, tmp_path / "out", tokenizer)
    assert message in caught.value.message
    assert f"{tmp_path / name}" in caught.value.message
    assert caught.value.hint


def test_names_are_guessed(tmp_path: Path) -> None:
    (tmp_path / "x.jsonll").write_text("?")
    with pytest.raises(DataError) as caught:
        find_sources([str(tmp_path / "x.jsonll")])
    assert "did you mean .jsonl?" in (caught.value.hint or "")
    (tmp_path / "x").write_text(' {"a": 1}')
    (tmp_path / "y").write_text("\ufeff[]", encoding="utf-8")
    (tmp_path / "z").write_text("once upon a time")
    found = find_sources([str(tmp_path / name) for name in "xyz"], as_text=True)
    assert [source.kind for source in found] == ["json_lines", "json_list", "text"]


def test_what_is_not_there(tmp_path: Path) -> None:
    for name, message in (("none.json", "does not exist"), ("*.json", "no file is named like")):
        with pytest.raises(DataError, match=message):
            find_sources([str(tmp_path / name)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file of a known kind"):
        find_sources([str(tmp_path / "empty")])


def test_without_pyarrow(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "x.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match="pyarrow, which reads tables, is not installed") as caught:
        prepared(tmp_path / "x.parquet", tmp_path / "out", tokenizer)
    assert caught.value.hint == "pip install 'runformer[data]'"
