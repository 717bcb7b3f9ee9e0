"""Samples → rows: packed, cut from one stream, Megatron's documents; and samples that are too long or empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import write_byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import prepared, rows, same_files, spoken

from runformer.data import IGNORED
from runformer.data.conversations import Encoded
from runformer.data.megatron.indexed import IndexedDataset
from runformer.data.prepare import rows as rows_module
from runformer.data.prepare.encode import Samples
from runformer.data.prepare.rows import RowCounts, packed_rows, padded_rows, stream_rows
from runformer.errors import DataError, TokenizerError
from runformer.tokenizer import Tokenizer, load_tokenizer

PAD = 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@st.composite
def samples(draw: st.DrawFn, longest: int) -> list[Encoded]:
    found = []
    for size in draw(st.lists(st.integers(1, longest), max_size=25)):
        tokens = draw(st.lists(st.integers(1, 99), min_size=size, max_size=size))
        learnt = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        found.append(Encoded(tokens, [t if x else IGNORED for t, x in zip(tokens, learnt, strict=True)]))
    return found


def chunks(found: list[Encoded], sizes: int) -> list[Samples]:
    return [Samples.of(found[begin : begin + sizes]) for begin in range(0, len(found), sizes)]


@settings(deadline=None)
@given(samples(12), st.integers(1, 9), st.sampled_from([1, 20, 1 << 22]))
def test_packed_rows_hold_every_sample_once(found: list[Encoded], sizes: int, window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_WINDOW", window)
        counts = RowCounts()
        made = list(packed_rows(chunks(found, sizes), 12, PAD, "labels", counts))
    unpacked = []
    for row in made:
        assert {len(row["input_ids"]), len(row["labels"])} == {12}
        ends = row["actual_seq_len"]
        assert ends.dtype == np.int32
        assert ends[-1] == 12
        begins = [0, *ends[:-1]]
        for begin, end in zip(begins, ends, strict=True):
            tokens, labels = row["input_ids"][begin:end].tolist(), row["labels"][begin:end].tolist()
            assert labels[0] == IGNORED
            if tokens[0] == PAD:
                assert (set(tokens), set(labels), end) == ({PAD}, {IGNORED}, 12)
            else:
                unpacked.append((tokens, labels))
    expected = [(each.tokens, [IGNORED, *each.labels[1:]]) for each in found]
    assert sorted(unpacked) == sorted(expected)
    assert (counts.rows, counts.documents) == (len(made), len(found))
    assert counts.tokens + counts.padding == 12 * len(made)
    assert counts.tokens == sum(len(each.tokens) for each in found)


@settings(deadline=None)
@given(samples(12), st.integers(1, 9), st.booleans())
def test_padded_rows(found: list[Encoded], sizes: int, masked: bool) -> None:
    column = "target_ids" if masked else "labels"
    made = list(padded_rows(chunks(found, sizes), 12, PAD, column, counts := RowCounts()))
    for row, sample in zip(made, found, strict=True):
        rest = 12 - len(sample.tokens)
        assert row["input_ids"].tolist() == sample.tokens + [PAD] * rest
        assert row[column].tolist() == sample.labels + [IGNORED] * rest
        assert row.get("attention_mask", np.array([])).tolist() == (
            [1] * len(sample.tokens) + [0] * rest if masked else []
        )
    assert counts.padding == sum(12 - len(each.tokens) for each in found)


@settings(deadline=None)
@given(samples(30), st.integers(1, 9), st.booleans())
def test_a_stream_is_cut_into_rows(found: list[Encoded], sizes: int, pad_last: bool) -> None:
    stream = [token for each in found for token in each.tokens]
    made = list(stream_rows(chunks(found, sizes), 7, PAD, pad_last, counts := RowCounts()))
    flat = [int(token) for row in made for token in row["input_ids"]]
    rest = len(stream) % 7
    assert flat == (stream + [PAD] * (-len(stream) % 7) if pad_last else stream[: len(stream) - rest])
    assert counts.tail == (0 if pad_last else rest)
    assert counts.padding == (-len(stream) % 7 if pad_last else 0)
    assert counts.documents == len(found)


def write(folder: Path, *records: Any) -> Path:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def answer(text: str, question: str = "a") -> dict[str, str]:
    return {"instruction": question, "output": text}


def test_packing_from_the_records(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lengths = [1, 5, 2, 9, 2, 5, 1]  # and 5 tokens more each: two of the user, its end, the assistant's, its end
    source = write(tmp_path, *(answer("x" * length) for length in lengths))
    report = prepared(source, tmp_path / "x", tokenizer.file, 19, pack=True)
    made = rows(tmp_path / "x")
    assert sorted(made[0]) == ["actual_seq_len", "input_ids", "labels"]
    assert len(made) == 3
    assert sum(spoken(tokenizer, row["labels"]).count("<|end|>") for row in made) == 7
    assert report.rows.tokens == sum(lengths) + 35
    assert report.rows.padding == 60 - report.rows.tokens


def test_pretraining_rows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("abc\ndef\n\n\nghij\n")
    report = prepared(tmp_path / "x.txt", tmp_path / "x", tokenizer.file, 4)
    assert report.columns == ("input_ids",)
    assert [spoken(tokenizer, row["input_ids"]) for row in rows(tmp_path / "x")] == ["abc\nd", "ef<|end|>gh"]
    assert (report.rows.documents, report.rows.tail, report.counts.tokens) == (2, 3, 13)
    report = prepared(tmp_path / "x.txt", tmp_path / "y", tokenizer.file, 4, pad_last_row=True)
    assert spoken(tokenizer, rows(tmp_path / "y")[-1]["input_ids"]) == "ij<|end|><|pad|><|pad|>"
    prepared(tmp_path / "x.txt", tmp_path / "z", tokenizer.file, 4, documents="line")
    assert spoken(tokenizer, rows(tmp_path / "z")[0]["input_ids"]) == "abc<|end|>d"
    with pytest.raises(DataError, match="has 13 tokens, too few for a row of 40 \\+ 1") as caught:
        prepared(tmp_path / "x.txt", tmp_path / "w", tokenizer.file, 40)
    assert caught.value.hint == "choose a smaller --seq_length, or --last_row pad"
    assert not (tmp_path / "w.work").exists()


def test_instructions_to_pretrain_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = write(tmp_path, answer("b"), answer("c"))
    prepared(source, tmp_path / "x", tokenizer.file, 5, stage="pretrain")
    assert "".join(spoken(tokenizer, row["input_ids"]) for row in rows(tmp_path / "x")) == (
        "<|user|>a<|end|><|assistant|>b<|end|><|user|>a<|end|><|assistant|>c<|end|>"
    )


@pytest.mark.parametrize("append", [True, False])
def test_megatron(tokenizer: Tokenizer, tmp_path: Path, append: bool) -> None:
    source = write(tmp_path, {"text": "abc"}, {"text": ""}, {"text": "d"}, {"text": "  "})
    report = prepared(source, tmp_path / "x", tokenizer.file, None, to="megatron", append_eod=append)
    assert (report.counts.empty, report.counts.records, report.rows.documents) == (2, 4, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "records.jsonl",
        "x_text_document.bin",
        "x_text_document.idx",
    ]
    dataset = IndexedDataset(tmp_path / "x_text_document")
    end = "<|end|>" if append else ""
    assert [spoken(tokenizer, dataset[number]) for number in range(len(dataset))] == [f"abc{end}", f"d{end}"]
    assert dataset[0].dtype == np.int32
    with pytest.raises(DataError, match=r"x_text_document\.bin exists already"):
        prepared(source, tmp_path / "x", tokenizer.file, None, to="megatron")


def test_records_that_are_too_long(tokenizer: Tokenizer, tmp_path: Path) -> None:
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    source = write(tmp_path, answer(alphabet), answer("x"), answer("y", question="q" * 40))
    report = prepared(source, tmp_path / "drop", tokenizer.file, 9, too_long="drop")
    assert (report.counts.dropped, report.rows.rows, report.counts.longest) == (2, 1, 45)
    report = prepared(source, tmp_path / "cut", tokenizer.file, 9)
    assert (report.counts.cut, report.counts.left_out, report.rows.rows) == (1, 1, 2)
    report = prepared(source, tmp_path / "split", tokenizer.file, 9, too_long="split")
    made = rows(tmp_path / "split")
    assert (report.counts.split, report.rows.rows) == (2, len(made))
    # Of rows that overlap by a token every token of the answer is predicted once.
    learnt = [spoken(tokenizer, row["labels"][1:]) for row in made]
    assert "".join(learnt) == alphabet + "<|end|>x<|end|>y<|end|>"
    assert spoken(tokenizer, made[1]["input_ids"])[0] == spoken(tokenizer, made[0]["input_ids"])[-1]


def test_all_may_be_learnt(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = write(tmp_path, answer("b"))
    prepared(source, tmp_path / "x", tokenizer.file, 9, learn_all=True, label_column="target_ids")
    (row,) = rows(tmp_path / "x")
    assert spoken(tokenizer, row["target_ids"]) == "<|user|>a<|end|><|assistant|>b<|end|>"
    assert row["target_ids"].tolist()[-4:] == [IGNORED] * 4


def test_nothing_to_learn(tmp_path: Path) -> None:
    folder = write_byte_tokenizer(tmp_path / "model", chat_template=None)
    (folder / "tokenizer_config.json").write_text('{"pad_token": "<|pad|>"}')
    source = write(tmp_path, answer(""), answer("b"))
    report = prepared(source, tmp_path / "x", folder, 300)
    assert (report.counts.empty, report.rows.rows) == (1, 1)
    with pytest.raises(TokenizerError, match="no end token"):
        prepared(write(tmp_path, {"text": "a"}), tmp_path / "y", folder, 3)


def test_shards_and_repeated_rows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = write(tmp_path, *(answer(str(n)) for n in range(7)))
    report = prepared(source, tmp_path / "x", tokenizer.file, 9, shards=2, repeat=2, max_rows=10)
    assert [file.name for file in report.files] == ["x0", "x1"]
    said = [spoken(tokenizer, row["labels"])[0] for row in rows(tmp_path / "x0")]
    assert sorted(said) == sorted(str(n % 7) for n in range(10))
    assert (tmp_path / "x1.db").is_file()
    with pytest.raises(DataError, match="x0 exists already"):
        prepared(source, tmp_path / "x", tokenizer.file, 9, shards=2)


def test_vicuna(tokenizer: Tokenizer, tmp_path: Path) -> None:
    turns = [{"from": who, "value": text} for who, text in zip(("human", "gpt") * 2, "abcd", strict=True)]
    source = write(tmp_path, {"conversations": turns})
    prepared(source, tmp_path / "x", tokenizer.file, 300, template="vicuna")
    (row,) = rows(tmp_path / "x")
    text = spoken(tokenizer, row["input_ids"]).removesuffix("<|pad|>" * 100)
    assert "questions. USER: a ASSISTANT: b<|end|>USER: c ASSISTANT: d<|end|>" in text
    assert spoken(tokenizer, row["labels"]) == " b<|end|> d<|end|>"
    source = write(tmp_path, {"conversations": turns[:1] * 2})
    with pytest.raises(DataError, match=r"line 1: the turns of user and assistant do not alternate"):
        prepared(source, tmp_path / "y", tokenizer.file, 300, template="vicuna")


@pytest.mark.parametrize("options", [{}, {"pack": True}, {"stage": "pretrain"}])
def test_chunks_and_blocks_leave_no_trace(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    source = write(tmp_path, *(answer("x" * (n % 11)) for n in range(100)))
    (tmp_path / "a").mkdir()
    prepared(source, tmp_path / "a" / "x", tokenizer.file, 20, **options)
    monkeypatch.setattr("runformer.data.prepare.blocks.BLOCK", 100)
    (tmp_path / "b").mkdir()
    prepared(source, tmp_path / "b" / "x", tokenizer.file, 20, chunk_size=300, **options)
    assert same_files(tmp_path / "a" / "x", tmp_path / "b" / "x")
    assert sorted(file.name for file in (tmp_path / "b").iterdir()) == ["x", "x.db"]
