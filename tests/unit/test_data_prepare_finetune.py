"""Instruction records as padded rows: prompts, labels, and records that are not in Alpaca form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import write_byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import prepared, rows, spoken

from runformer.errors import DataError, TokenizerError
from runformer.tokenizer import Tokenizer, load_tokenizer

SKY = {"instruction": "Sky?", "input": "day", "output": "blue"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def plain_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_byte_tokenizer(tmp_path_factory.mktemp("plain"), chat_template=None, pad=None))


def source(folder: Path, *records: Any) -> Path:
    path = folder / "records.json"
    path.write_text(json.dumps(records))
    return path


def test_a_chat_row_teaches_the_answer_only(tokenizer: Tokenizer, tmp_path: Path) -> None:
    report = prepared(source(tmp_path, SKY), tmp_path / "x", tokenizer.file, 24)
    (row,) = rows(tmp_path / "x")
    text = "<|user|>Sky?\nday<|end|><|assistant|>blue<|end|>"
    assert spoken(tokenizer, row["input_ids"]) == text + "<|pad|>" * 9
    assert row["input_ids"].dtype == "int32"
    assert len(row["input_ids"]) == len(row["labels"]) == 25
    assert row["labels"].tolist() == [-100] * 11 + row["input_ids"].tolist()[11:16] + [-100] * 9
    assert spoken(tokenizer, row["labels"]) == "blue<|end|>"
    assert (report.rows.rows, report.counts.cut, report.counts.left_out, report.counts.longest) == (1, 0, 0, 16)
    assert (report.columns, report.pad_token_id) == (("input_ids", "labels"), tokenizer.pad_id)


def test_the_alpaca_prompt_where_there_is_no_chat_template(plain_tokenizer: Tokenizer, tmp_path: Path) -> None:
    records = source(tmp_path, SKY, {"instruction": "Sky?", "output": "blue"})
    report = prepared(records, tmp_path / "x", plain_tokenizer.file, 300)
    with_input, without = (spoken(plain_tokenizer, row["input_ids"]) for row in rows(tmp_path / "x"))
    assert "paired with an input" in with_input
    assert "### Instruction:\nSky?\n\n### Input:\nday\n\n### Response:\nblue<|end|>" in with_input
    assert "### Input" not in without
    assert "task. Write a response that appropriately completes the request.\n\n### Instruction:\nSky?" in without
    assert [spoken(plain_tokenizer, row["labels"]) for row in rows(tmp_path / "x")] == ["blue<|end|>"] * 2
    assert report.pad_token_id == plain_tokenizer.eos_id


def test_the_columns_of_the_qwen_recipes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    prepared(source(tmp_path, SKY), tmp_path / "x", tokenizer.file, 24, label_column="target_ids")
    (row,) = rows(tmp_path / "x")
    assert sorted(row) == ["attention_mask", "input_ids", "target_ids"]
    assert row["attention_mask"].tolist() == [1] * 16 + [0] * 9
    assert spoken(tokenizer, row["target_ids"]) == "blue<|end|>"


def test_long_records_are_cut_and_those_without_room_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    long_answer, long_prompt = {**SKY, "output": "b" * 99}, {**SKY, "input": "d" * 99}
    report = prepared(source(tmp_path, SKY, long_answer, long_prompt), tmp_path / "x", tokenizer.file, 24)
    assert (report.rows.rows, report.counts.cut, report.counts.left_out, report.counts.longest) == (2, 1, 1, 112)
    assert spoken(tokenizer, rows(tmp_path / "x")[1]["labels"]) == "b" * 14
    with pytest.raises(DataError, match=r"nothing to write: .* has 1 records"):
        prepared(source(tmp_path, long_prompt), tmp_path / "y", tokenizer.file, 24)
    assert not (tmp_path / "y").exists()


@settings(max_examples=30, deadline=None)
@given(
    st.fixed_dictionaries({name: st.text(st.characters(exclude_categories=["Cs"]), max_size=20) for name in SKY}),
    st.integers(1, 120),
)
def test_labels_are_the_tokens_of_the_answer_at_their_places(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, record: dict[str, str], length: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    question = record["instruction"] + ("\n" + record["input"] if record["input"] else "")
    if 3 + len(question.encode()) > length:  # the prompt with its three special tokens fills the row
        with pytest.raises(DataError, match="nothing to write"):
            prepared(source(folder, record), folder / "x", tokenizer.file, length)
        return
    prepared(source(folder, record), folder / "x", tokenizer.file, length)
    (row,) = rows(folder / "x")
    learnt = row["labels"] != -100
    assert (row["labels"][learnt] == row["input_ids"][learnt]).all()
    assert record["output"].startswith(spoken(tokenizer, row["labels"]).removesuffix("<|end|>").rstrip("�"))


def test_json_lines_and_a_byte_order_mark(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(
        "\ufeff" + json.dumps(SKY) + "\n\n" + json.dumps({**SKY, "input": "night"}) + "\n", encoding="utf-8"
    )
    prepared(path, tmp_path / "x", tokenizer.file, 24)
    assert [spoken(tokenizer, row["input_ids"])[13:18] for row in rows(tmp_path / "x")] == ["day<|", "night"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"instruction": "a", "output": "b"}, {"instruction": "a"}]', "record 2 has no 'output'"),
        ('[{"instruction": "a", "output": 3}]', "record 1: 'output' should be a text, not int"),
        ("[3]", "record 1 is not an object"),
        ('[\n{"instruction": }]', "not JSON at line 2, column 17"),
        ('{"instruction": "a", "output": "b"}\n{"a', "line 2: not JSON at column 2"),
        ('{"instruction": "a"}', "line 1 has no 'output'"),
        ("[" * 100000, "nested too deeply"),
        ("[]", "nothing to write"),
        ("", "nothing to write"),
        (b"[\xff]", "not UTF-8"),
    ],
)
def test_records_in_another_form(tokenizer: Tokenizer, tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "records.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as caught:
        prepared(path, tmp_path / "x", tokenizer.file, 24)
    assert "records.json" in caught.value.message
    assert caught.value.hint
    assert sorted(file.name for file in tmp_path.iterdir()) == ["records.json"]


def test_a_text_that_is_no_unicode_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"records\.json: record 2: not valid Unicode"):
        prepared(source(tmp_path, SKY, {**SKY, "output": "\ud800"}), tmp_path / "x", tokenizer.file, 24)


def test_no_records_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        prepared(tmp_path / "none.json", tmp_path / "x", tokenizer.file, 24)


def test_a_tokenizer_that_cannot_do_it(plain_tokenizer: Tokenizer, tmp_path: Path) -> None:
    records = source(tmp_path, SKY)
    with pytest.raises(DataError, match="record 1: this tokenizer has no chat template"):
        prepared(records, tmp_path / "x", plain_tokenizer.file, 24, template="chat")
    folder = write_byte_tokenizer(tmp_path / "odd", "{{ messages | length }}")
    with pytest.raises(DataError, match="record 1: the chat template writes an answer differently"):
        prepared(records, tmp_path / "x", folder, 24)
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TokenizerError, match="neither a padding nor an end token"):
        prepared(records, tmp_path / "x", folder, 24)
