"""``python -m runformer data show|stats|index`` as a user runs them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from byte_tokenizer import write_byte_tokenizer

from runformer.data.megatron import IndexedWriter
from runformer.data.mindrecord import Column, MindRecordWriter
from runformer.tokenizer import load_tokenizer

PAD = 0


def data(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runformer", "data", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve padded rows with labels in two shards, their tokenizer, and a Megatron dataset."""
    tokenizer = load_tokenizer(write_byte_tokenizer(tmp_path / "tokenizer"))
    records = []
    for number in range(12):
        prompt, answer = tokenizer.encode(f"<|user|>{number}?"), tokenizer.encode("yes " * number + "<|end|>")
        ids = [*prompt, *answer] + [PAD] * (64 - len(prompt) - len(answer))
        labels = [*[-100] * len(prompt), *answer] + [-100] * (64 - len(prompt) - len(answer))
        records.append({"input_ids": np.array(ids, "int32"), "labels": np.array(labels, "int32")})
    schema = {"input_ids": Column("int32", (-1,)), "labels": Column("int32", (-1,))}
    with MindRecordWriter(tmp_path / "x.mindrecord", schema, shard_num=2, page_size=32 << 10) as writer:
        writer.write(records)
    with IndexedWriter(tmp_path / "text", "uint16") as writer:
        for number in range(5):
            writer.add(np.full(number + 1, number, "uint16"))
    return tmp_path


def test_show_with_a_tokenizer(folder: Path) -> None:
    done = data("show", "x.mindrecord0", "--tokenizer", "tokenizer", "--from", "6", "--count", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "format   MindRecord 3.0" in done.stdout
    assert "x.mindrecord1: shard 1 of 2, 6 records" in done.stdout
    assert done.stdout.count("record 6  record 0 of x.mindrecord1") == 1
    assert f"<|user|>6?{'yes ' * 6}<|end|> … ×36 padding\n" in done.stdout


def test_show_several_files_of_which_one_is_missing(folder: Path) -> None:
    done = data("show", "text", "nowhere", "x.mindrecord0", "--count", "0", cwd=folder)
    assert done.returncode == 1
    assert "5 documents of 5 sequences" in done.stdout
    assert "shard 0 of 2" in done.stdout
    assert done.stderr.splitlines() == ["error: nowhere does not exist", "  hint: check the path of the dataset"]


def test_stats_for_people_and_for_programs(folder: Path) -> None:
    done = data("stats", "x.mindrecord0", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("x.mindrecord0: input_ids, labels\n  records  12\n")
    assert "padding is id 0, a guess by how records end" in done.stdout
    done = data("stats", "x.mindrecord0", "text", "--json", "--seq_length", "63", "--pad_token_id", "0", cwd=folder)
    rows, documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert {
        name: rows[name] for name in ("records", "stored_tokens", "row_length", "largest_id", "longer_than_row")
    } == {
        "records": 12,
        "stored_tokens": 768,
        "row_length": 64,
        "largest_id": 224,
        "longer_than_row": 0,
    }
    assert rows["tokens"] == sum(int(length) * count for length, count in rows["lengths"].items()) < 768
    assert rows["counted_tokens"] == sum(4 * number + 1 for number in range(12))
    assert rows["packing"]["rows_before"] == 12 > rows["packing"]["rows_after"]
    assert documents["samples_run_on"] is True
    assert documents["tokens"] == 14  # the first document is one token of padding


def test_index_makes_what_is_missing_or_wrong(folder: Path) -> None:
    first, second = folder / "x.mindrecord0.db", folder / "x.mindrecord1.db"
    kept = first.read_bytes(), second.read_bytes()
    done = data("index", "x.mindrecord1", cwd=folder)
    assert done.stdout.splitlines() == [
        f"x.mindrecord{shard}.db agrees with its 6 records; left as it is" for shard in (0, 1)
    ]
    first.unlink()
    second.write_bytes(b"noise")
    done = data("index", "x.mindrecord1", cwd=folder)
    assert done.returncode == 0, done.stderr
    one, two = done.stdout.splitlines()
    assert one == "wrote x.mindrecord0.db of 6 records; there was none"
    assert two.startswith("wrote x.mindrecord1.db of 6 records; the old one disagreed with the data: it cannot be read")
    assert (first.read_bytes(), second.read_bytes()) == kept


def test_an_index_that_cannot_be_written(folder: Path) -> None:
    index = folder / "x.mindrecord0.db"
    index.unlink()
    index.mkdir()
    done = data("index", "x.mindrecord0", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.startswith("error: x.mindrecord0.db cannot be written: Is a directory")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["index", "text"], 1, "error: text belongs to Megatron-LM's indexed dataset\n  hint: "),
        (["stats", "tokenizer"], 1, "holds no file whose name ends in 'mindrecord'"),
        (["stats", "x.mindrecord0", "--columns", "label"], 1, "did you mean 'labels'?"),
        (["stats", "x.mindrecord0.db"], 1, "hint: give the file itself: x.mindrecord0"),
        (["show", "x.mindrecord0", "--from", "12"], 1, "has records 0 to 11, but --from asks for 12"),
        (["show", "x.mindrecord0", "--tokenizer", "nowhere"], 1, "nowhere: no such folder of a tokenizer"),
        (["show", "x.mindrecord0", "--count", "-1"], 2, "'-1' should be a whole number from 0 on"),
        (["stats", "x.mindrecord0", "--seq_length", "0"], 2, "'0' should be a whole number from 1 on"),
        (["show"], 2, "the following arguments are required: FILE"),
        ([], 2, "the following arguments are required: COMMAND"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, words: list[str], code: int, expected: str) -> None:
    done = data(*words, cwd=folder)
    assert done.returncode == code
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_sees_a_bar_and_grey(folder: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "runformer", "data"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    for words in (["stats", "x.mindrecord0"], ["show", "x.mindrecord0", "--tokenizer", "tokenizer"]):
        subprocess.run(
            [*command, *words], cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, check=True
        )
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 1 << 16)
        except OSError:  # all is read
            break
    os.close(ours)
    text = seen.decode()
    assert "12/12" in text
    assert "\x1b[2m<|user|>2?\x1b[0myes yes <|end|>" in text
