"""Columns → texts, instructions and conversations, and what is said of records that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import write_byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import prepared, rows, spoken

from runformer.data.formats import (
    FORMATS,
    ROLES,
    Conversation,
    Instruction,
    RecordReader,
    Text,
    detect_format,
)
from runformer.errors import DataError, TokenizerError, UsageError
from runformer.tokenizer import load_tokenizer

CHAT = [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "blue"}]
SHARED = [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "blue"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def read(name: Any, record: dict[str, Any], **mapping: str) -> Any:
    return RecordReader(FORMATS[name], mapping).read(record)


@pytest.mark.parametrize(
    ("columns", "stage", "name"),
    [
        (["id", "messages"], None, "messages"),
        (["conversations", "id"], None, "sharegpt"),
        (["instruction", "output"], None, "alpaca"),
        (["instruction", "input", "output", "text"], None, "alpaca"),
        (["instruction", "input", "output", "text"], "pretrain", "text"),
        (["text", "meta"], None, "text"),
        (["messages"], "pretrain", "messages"),
        (["instruction"], None, "alpaca"),
    ],
)
def test_columns_tell_the_format(columns: list[str], stage: Any, name: str) -> None:
    assert detect_format(columns, {}, stage).name == name


def test_columns_with_other_names() -> None:
    assert detect_format(["q", "a"], {"instruction": "q", "output": "a"}, None).name == "alpaca"
    assert read("alpaca", {"q": "1", "a": "2"}, instruction="q", output="a") == Instruction("1", "", "2")
    assert read("text", {"body": "1"}, text="body") == Text("1")
    turns = [{"who": "HUMAN", "what": "Sky?"}, {"who": "GPT", "what": "blue"}]
    mapping = {"conversations": "talk", "from": "who", "value": "what"}
    assert read("sharegpt", {"talk": turns}, **mapping) == Conversation(CHAT)
    with pytest.raises(DataError) as caught:
        detect_format(["instructions", "answer"], {}, None)
    assert "of no known format" in caught.value.message
    assert caught.value.hint == "did you mean 'instruction'? --map instruction=instructions"


def test_conversations() -> None:
    assert read("messages", {"messages": CHAT}) == Conversation(CHAT)
    assert read("sharegpt", {"conversations": SHARED}) == Conversation(CHAT)
    assert read("sharegpt", {"conversations": json.dumps(SHARED)}) == Conversation(CHAT)
    told = read("sharegpt", {"conversations": SHARED, "system": "Be kind."})
    assert told == Conversation([{"role": "system", "content": "Be kind."}, *CHAT])
    parts = [{"type": "text", "text": "S"}, {"type": "text", "text": "ky?"}]
    assert read("messages", {"messages": [{"role": "user", "content": parts}, CHAT[1]]}) == Conversation(CHAT)
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}], "name": None}
    assert read("messages", {"messages": [call]}).messages == [
        {"role": "assistant", "content": "", "tool_calls": [{"name": "look"}]}
    ]
    assert set(ROLES.values()) == {"user", "assistant", "system", "tool"}


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("alpaca", {"instruction": "a"}, " has no 'output'"),
        ("alpaca", {"instruction": "a", "output": None}, ": 'output' should be a text, not null"),
        ("alpaca", {"instruction": "a", "output": "b", "input": 3}, ": 'input' should be a text, not int"),
        ("text", {"text": ["a"]}, ": 'text' should be a text, not list"),
        ("text", {"text": "ab\ud800"}, ": not valid Unicode: 'text' has half of a surrogate pair (U+D800) at 3"),
        ("messages", {"messages": []}, ": 'messages' holds no message"),
        ("messages", {"messages": "hello"}, ": 'messages' should be a list of messages, not a text"),
        ("messages", {"messages": 3}, ": 'messages' should be a list of messages, not int"),
        ("messages", {"messages": [3]}, ": message 1 of 'messages' is not an object"),
        ("messages", {"messages": [*CHAT, {"role": "user"}]}, ": message 3: 'content' should be a text, not null"),
        ("messages", {"messages": [{"content": "a"}]}, ": message 1: 'role' should be a text, not null"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "something else than text"),
        ("messages", {"messages": [{"role": "user", "content": "a", "x": ["\udfff"]}]}, "not valid Unicode: message 1"),
        (
            "sharegpt",
            {"conversations": [{"from": "humna", "value": ""}]},
            "'from' is 'humna', which is none of",
        ),
        ("sharegpt", {"conversations": [{"from": "human"}]}, ": message 1: 'value' should be a text, not null"),
    ],
)
def test_records_that_do_not_fit(name: Any, record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(name, record)
    assert message in caught.value.message
    assert caught.value.hint


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(DataError) as caught:
        read("alpaca", {"instruction": "a", "outptu": "b"})
    assert (caught.value.hint or "").startswith("did you mean --map output=outptu? expected is {")
    with pytest.raises(DataError) as caught:
        read("sharegpt", {"conversations": [{"from": "humna", "value": ""}]})
    assert caught.value.hint == "did you mean 'human'?"


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.sampled_from(["user", "gpt", "human"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type", "text"]), inner, max_size=4),
    ),
    max_leaves=8,
)


COLUMNS = sorted({column for each in FORMATS.values() for column in each.columns})


@settings(max_examples=300)
@given(
    st.sampled_from(list(FORMATS)),
    st.dictionaries(st.sampled_from(COLUMNS), JSON),
)
def test_any_record_is_read_or_refused(name: Any, record: dict[str, Any]) -> None:
    hint: str | None = "read"
    try:
        assert isinstance(read(name, record), Text | Instruction | Conversation)
    except DataError as error:
        hint = error.hint
    assert hint


@pytest.mark.parametrize("form", ["sharegpt", "messages"])
def test_conversations_as_rows(tokenizer: Path, tmp_path: Path, form: str) -> None:
    record = {"messages": CHAT * 2} if form == "messages" else {"conversations": SHARED * 2}
    (tmp_path / "x.jsonl").write_text(json.dumps(record))
    prepared(tmp_path / "x.jsonl", tmp_path / "out", tokenizer, 40)
    loaded = load_tokenizer(tokenizer)
    (row,) = rows(tmp_path / "out")
    assert spoken(loaded, row["labels"]) == "blue<|end|>" * 2
    assert spoken(loaded, row["input_ids"]) == "<|user|>Sky?<|end|><|assistant|>blue<|end|>" * 2 + "<|pad|>" * 17


def test_records_of_another_format_than_the_first(tokenizer: Path, tmp_path: Path) -> None:
    lines = [{"instruction": "a", "output": "b"}, {"text": "c"}, {"messages": CHAT}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=r"x\.jsonl: line 2 has no 'instruction'"):
        prepared(tmp_path / "x.jsonl", tmp_path / "out", tokenizer)
    with pytest.raises(DataError, match=r"x\.jsonl: line 1 has no 'messages'"):
        prepared(tmp_path / "x.jsonl", tmp_path / "out", tokenizer, format="messages")


def test_options_that_do_not_go_together(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a text")
    for options, message in (
        ({"pack": True, "stage": "pretrain"}, "--pack is for fine-tuning"),
        ({"pack": True}, "--pack is for fine-tuning"),
        ({"to": "megatron", "stage": "finetune"}, "no --stage finetune"),
        ({"mapping": {"outptu": "x"}}, "'outptu' is not a column of a format"),
        ({"length": None}, "--seq_length is missing"),
    ):
        with pytest.raises(UsageError, match=message):
            prepared(tmp_path / "x.txt", tmp_path / "out", tokenizer, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="names no file"):
        prepared(tmp_path / "x.txt", Path(), tokenizer)
    with pytest.raises(DataError, match="holds plain texts, in which no answers are marked"):
        prepared(tmp_path / "x.txt", tmp_path / "out", tokenizer, stage="finetune")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.txt"]


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = write_byte_tokenizer(tmp_path / "model")
    (tmp_path / "x.jsonl").write_text('{"text": "abc"}')
    (folder / "config.json").write_text('{"vocab_size": 100}')
    with pytest.raises(TokenizerError, match="ends at 99"):
        prepared(tmp_path / "x.jsonl", tmp_path / "out", folder, 1)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"260": {"content": "<|new|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"vocab_size": 260}')
    prepared(tmp_path / "x.jsonl", tmp_path / "out", folder, 1)
    (tmp_path / "y.jsonl").write_text('{"text": "abc"}\n{"text": "a<|new|>"}')
    with pytest.raises(TokenizerError, match=r"y\.jsonl: line 2 has token id 260, but .* there are 260 tokens"):
        prepared(tmp_path / "y.jsonl", tmp_path / "y", folder, 1)
