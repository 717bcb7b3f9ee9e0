"""``data show``: records as people read them."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import write_byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from token_rows import ROWS, SMALL, write_rows

from runformer.data.inspect.show import Choice, show, unpadded
from runformer.data.inspect.tokens import as_numbers, kinds, visible
from runformer.data.inspect.tokens import as_text as tokens_as_text
from runformer.data.mindrecord import Column, MindRecordWriter
from runformer.errors import DataError
from runformer.tokenizer import load_tokenizer


def shown(path: Path, **choice: Any) -> str:
    console = Console(file=io.StringIO(), width=100, highlight=False, markup=False, emoji=False)
    show(path, Choice(**choice), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_show_greys_what_is_not_learnt_and_folds_padding(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_byte_tokenizer(tmp_path / "tokenizer"))
    prompt, answer = tokenizer.encode("<|user|>Größe?<|end|>"), tokenizer.encode("[bold]漢字<|end|>")
    row = [*prompt, *answer, *[0] * 12]
    marks = [*[-100] * len(prompt), *answer, *[-100] * 12]
    path = write_rows(tmp_path / "x.mindrecord", [row], [marks])
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard", highlight=False)
    show(path, Choice(tokenizer=tokenizer), console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b[2m<|user|>Größe?<|end|>\x1b[0m[bold]漢字<|end|>\x1b[35m … ×12 padding\x1b[0m" in text
    assert f"int32 [{len(row)}]; in labels {len(answer)} positions count, the others are grey" in text
    plain = shown(path)
    assert f"{' '.join(map(str, [*prompt, *answer]))}  … ×12 padding\n" in plain
    assert "×" not in shown(write_rows(tmp_path / "y.mindrecord", [[1, 2, 3, 3]]))


def test_show_puts_a_bar_between_documents(tmp_path: Path) -> None:
    path = tmp_path / "x.mindrecord"
    with MindRecordWriter(path, {"input_ids": ROWS, "actual_seq_len": ROWS}, **SMALL) as writer:
        ends = np.array([2, 3, 10], "int32")
        writer.write([{"input_ids": np.array([7, 8, 9, 5, 6, 0, 0, 0, 0, 0], "int32"), "actual_seq_len": ends}])
    assert "7 8 │9 │5 6  … ×5 padding\n" in shown(path)
    assert "7 8 │9 \n… 1 tokens …\n6 " in shown(path, tokens=4)


def test_show_takes_the_middle_out_of_long_records(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.mindrecord", [list(range(1000, 1100))])
    text = shown(path, tokens=8)
    assert "1000 1001 1002 1003 1004 1005 \n… 92 tokens …\n1098 1099 \n" in text
    assert " ".join(map(str, range(1000, 1100))) in shown(path, tokens=None)
    assert "\n… 100 tokens …\n" in shown(path, tokens=0)


def test_show_every_kind_of_value(tmp_path: Path) -> None:
    path = tmp_path / "x.mindrecord"
    schema = {"b": Column("bytes"), "f": Column("float64", (-1, 2)), "s": Column("string"), "k": Column("int64")}
    with MindRecordWriter(path, schema, description="made\x1b[31m for this", **SMALL) as writer:
        square = np.arange(20, dtype="float64").reshape(10, 2)
        writer.write([{"b": bytes(range(20)), "f": square, "s": "\x1b]0;title\x07 [red]é\u202e" + "x" * 500, "k": -7}])
    text = shown(path)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "MindRecord 3.0" in text
    assert "made␛[31m for this" in text
    assert "float64 [10, 2]  0.0 1.0 2.0 3.0 4.0 5.0 6.0 7.0 …" in text
    assert "20 bytes  00 01 02 03 04 05 06 07 …" in text
    assert "[red]é" in text
    assert "518 characters" in text
    assert "  k  -7\n" in text


def test_show_shards_and_which_records(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.mindrecord", [[number] for number in range(10)], shards=3)
    text = shown(path, first=8, count=5)
    assert "x.mindrecord2: shard 2 of 3, 3 records" in text
    assert [line for line in text.splitlines() if line.startswith("record ")] == [
        f"record 8  record 1 of {tmp_path}/x.mindrecord2",
        f"record 9  record 2 of {tmp_path}/x.mindrecord2",
    ]
    with pytest.raises(DataError, match="has records 0 to 9, but --from asks for 10"):
        shown(path, first=10)


def test_show_a_dataset_without_records(tmp_path: Path) -> None:
    text = shown(write_rows(tmp_path / "x.mindrecord", []))
    assert "no index" not in text
    assert "x.mindrecord: 0 records" in text


@pytest.mark.parametrize(
    ("row", "pad", "length"),
    [
        ([], None, 0),
        ([1, 1, 1], None, 3),
        ([1, 2, 2, 2, 2], None, 1),
        ([5] * 9, None, 0),
        ([5, 0], 0, 1),
        ([5, 1, 1, 1, 1], 0, 5),
    ],
)
def test_where_padding_begins(row: list[int], pad: int | None, length: int) -> None:
    assert unpadded(np.array(row, dtype=np.int64), pad) == length


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.lists(st.booleans(), min_size=200, max_size=200)
)
def test_parts_of_a_text_make_the_text(tmp_path_factory: pytest.TempPathFactory, text: str, learnt: list[bool]) -> None:
    folder = tmp_path_factory.getbasetemp() / "tokenizer_of_parts"
    tokenizer = load_tokenizer(folder if folder.is_dir() else write_byte_tokenizer(folder))
    ids = np.array(tokenizer.encode(text), dtype=np.int64)
    labels = np.where(np.resize(learnt, ids.shape), ids, -100)
    stretches = kinds(labels, len(ids))
    assert all(one[2] != other[2] and one[1] == other[0] for one, other in pairwise(stretches))
    parts = tokens_as_text(ids, stretches, tokenizer)
    assert "".join(part.text for part in parts) == visible(tokenizer.decode(ids.tolist(), skip_special_tokens=False))
    assert "".join(part.text for part in as_numbers(ids, stretches)).split() == [str(token) for token in ids.tolist()]


def test_ids_outside_the_vocabulary_and_halves_of_characters(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_byte_tokenizer(tmp_path))
    ids = np.array([*tokenizer.encode("aé"), -7, 2**40])
    assert [part.text for part in tokens_as_text(ids, kinds(None, len(ids)), tokenizer)] == ["aé⟨2 unknown ids⟩"]
    half = ids[1:2]
    assert tokens_as_text(half, kinds(None, 1), tokenizer, cut=True)[0].text == ""
    assert tokens_as_text(half, kinds(None, 1), tokenizer)[0].text == "\N{REPLACEMENT CHARACTER}"
