"""Handlers of tables: tokens of instructions, conversations and texts by hand, and methods as the library has them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import sentencepiece
from byte_tokenizer import write_byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import encode, json_lines, method, of_files, opened, pack, with_handlers
from tokenizer_texts import CORPUS, write_json

from runformer import plugins
from runformer.config.data_sources import HandlerOptions, TableFiles
from runformer.config.task import DataOptions, PluginOptions, TokenizerOptions
from runformer.data.dataset import TokenDataset
from runformer.data.records import Records
from runformer.data.tables.build import open_table
from runformer.errors import DataError, TokenizerError
from runformer.tokenizer import Tokenizer, load_tokenizer

pytestmark = pytest.mark.usefixtures("table_cache")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:"
)
WITHOUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nGreet.\n\n### Response:"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_byte_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def table(folder: Path, rows: list[Any], *handlers: HandlerOptions, **changes: Any) -> Records:
    source = of_files("json", json_lines(folder / "rows.jsonl", rows))
    return opened(with_handlers(source, *handlers), **changes)


def texts(tokenizer: Tokenizer, records: Records, row: int) -> tuple[str, str]:
    """A row's text, and what of it is learnt, which stands where its tokens do."""
    values = records.read_columns(row, ["input_ids", "labels"])
    learnt = values["labels"] != -100
    assert np.array_equal(values["labels"][learnt], values["input_ids"][learnt])
    told = [tokenizer.decode(ids.tolist(), False) for ids in (values["input_ids"], values["input_ids"][learnt])]
    return told[0], told[1]


def test_instructions_in_the_words_of_the_original(tmp_path: Path, folder: Path, tokenizer: Tokenizer) -> None:
    rows = [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hé"},
        {"instruction": "Greet.", "input": None, "output": ""},
    ]
    records = table(tmp_path, rows, encode("alpaca", folder, 1000))
    assert texts(tokenizer, records, 0) == (f"{SYSTEM} USER: {WITH_INPUT} ASSISTANT: 3<|end|>", " 3<|end|>")
    assert texts(tokenizer, records, 1) == (f"{SYSTEM} USER: {WITHOUT} ASSISTANT: Hé<|end|>", " Hé<|end|>")
    assert texts(tokenizer, records, 2) == (f"{SYSTEM} USER: {WITHOUT} ASSISTANT: <|end|>", " <|end|>")
    assert records.describe(1) == f"{tmp_path / 'rows.jsonl'}, row 1"
    assert list(records.column_names) == ["input_ids", "labels"]


def test_without_an_end_token_it_is_spelt_out(tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings_file = folder / "tokenizer_config.json"
    settings_file.write_text(settings_file.read_text().replace('"eos_token": "<|end|>", ', ""))
    with caplog.at_level(logging.WARNING):
        records = table(tmp_path, [{"instruction": "Greet.", "output": "Hi"}], encode("alpaca", folder, 1000))
    assert texts(load_tokenizer(folder), records, 0)[1] == " Hi</s>"
    assert "the tokenizer has no end token" in caplog.text


def test_a_column_of_inputs_may_be_left_out(tmp_path: Path, folder: Path, tokenizer: Tokenizer) -> None:
    records = table(tmp_path, [{"instruction": "Greet.", "output": "Hi"}], encode("alpaca", folder, 1000))
    assert texts(tokenizer, records, 0) == (f"{SYSTEM} USER: {WITHOUT} ASSISTANT: Hi<|end|>", " Hi<|end|>")


@pytest.mark.parametrize("bos", [False, True])
def test_instructions_with_a_sentencepiece_tokenizer(tmp_path: Path, bos: bool) -> None:
    """Its ``</s>`` is one token, texts begin with ``<s>``, and an answer is spelt as in the middle of a text."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
        num_threads=1,
    )
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": bos})
    rows = [{"instruction": "Greet.", "input": "", "output": "Hello there"}]
    values = table(tmp_path, rows, encode("alpaca", tmp_path, 1000)).read_columns(0, ["input_ids", "labels"])
    own = load_tokenizer(tmp_path)
    whole = own.encode(f"{SYSTEM} USER: {WITHOUT} ASSISTANT: Hello there</s>")
    assert values["input_ids"].tolist() == whole
    assert (whole[0] == own.bos_id) == bos
    learnt = values["labels"][values["labels"] != -100].tolist()
    assert learnt[-1] == own.eos_id
    assert own.decode(learnt).strip() == "Hello there"


MESSAGES = [
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Ho!"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "So."},
]
SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}[message["role"]], "value": message["content"]}
    for message in MESSAGES
]


@pytest.mark.parametrize("row", [{"messages": MESSAGES}, {"conversations": SHAREGPT}, {"conversations": MESSAGES}])
def test_conversations_by_the_chat_template(
    tmp_path: Path, folder: Path, tokenizer: Tokenizer, row: dict[str, Any]
) -> None:
    records = table(tmp_path, [row], encode("messages", folder))
    whole = "<|user|>Hi?<|end|><|assistant|>Ho!<|end|><|user|>And?<|end|><|assistant|>So.<|end|>"
    assert texts(tokenizer, records, 0) == (whole, "Ho!<|end|>So.<|end|>")


def test_columns_by_name_and_plain_texts(tmp_path: Path, folder: Path, tokenizer: Tokenizer) -> None:
    rows = [{"talk": MESSAGES[:2], "text": "abc", "story": "xyz"}]
    records = table(tmp_path, rows, encode("messages", folder, column="talk"))
    assert texts(tokenizer, records, 0)[1] == "Ho!<|end|>"
    assert texts(tokenizer, table(tmp_path, rows, encode("text", folder)), 0) == ("abc<|end|>", "abc<|end|>")
    assert texts(tokenizer, table(tmp_path, rows, encode("text", folder, column="story")), 0)[0] == "xyz<|end|>"


@pytest.mark.parametrize(
    ("side", "tokens", "labels"),
    [
        ("right", "ab<|end|><|pad|><|pad|>", [True] * 3 + [False] * 2),
        ("left", "<|pad|><|pad|>ab<|end|>", [False] * 2 + [True] * 3),
        (None, "ab<|end|>", [True] * 3),
    ],
)
def test_padding(
    tmp_path: Path, folder: Path, tokenizer: Tokenizer, side: str | None, tokens: str, labels: list[bool]
) -> None:
    records = table(tmp_path, [{"text": "ab"}, {"text": "abcdefg"}], encode("text", folder, 5, padding=side))
    row = records.read_columns(0, ["labels", "input_ids"])
    assert tokenizer.decode(row["input_ids"].tolist(), False) == tokens
    assert (row["labels"] != -100).tolist() == labels
    assert tokenizer.decode(records.read_columns(1, ["input_ids"])["input_ids"].tolist(), False) == "abcde"


def test_the_models_padding_wins_over_the_tokenizers(tmp_path: Path, folder: Path) -> None:
    records = table(tmp_path, [{"text": ""}], encode("text", folder, 3, padding="right"), pad_token_id=77)
    assert records.read_columns(0, ["input_ids"])["input_ids"].tolist()[1:] == [77, 77]


@pytest.mark.parametrize(
    ("form", "row", "expected"),
    [
        ("text", {"text": None}, "row 1: 'text' should be a text, not null"),
        ("text", {"text": "\ud800"}, "row 1: not valid Unicode: 'text' has half of a surrogate pair (U+D800) at 1"),
        ("alpaca", {"instruction": "a", "output": None}, "row 1: 'output' should be a text, not null"),
        ("messages", {"messages": None}, "row 1: 'messages' should be a list of messages, not null"),
        ("messages", {"messages": []}, "row 1: 'messages' holds no message"),
        ("messages", {"messages": [{"role": "assistant"}]}, "row 1: message 1: 'content' should be a text, not null"),
        (
            "messages",
            {"messages": [{"from": "cat", "value": "meow"}]},
            "row 1: message 1: 'from' is 'cat', which is none of human",
        ),
    ],
)
def test_wrong_records_are_named(folder: Path, form: str, row: dict[str, Any], expected: str) -> None:
    fine = {"text": "a", "instruction": "a", "output": "b", "messages": MESSAGES[:2]}

    class Rows(Records):
        name, column_names = "here", list(fine)

        def __len__(self) -> int:
            return 2

        def describe(self, record: int) -> str:
            return f"row {record}"

        def read_columns(self, record: int, columns: Any) -> dict[str, Any]:
            return {name: ({**fine, **row} if record else fine)[name] for name in columns}

    from runformer.data.tables.encode import EncodedRecords

    records = EncodedRecords(Rows(), encode(form, folder), load_tokenizer(folder), 0)
    assert len(records.read_columns(0, ["input_ids"])["input_ids"])
    for read in (lambda: records.read_columns(1, ["input_ids"]), records.lengths):
        with pytest.raises(DataError) as caught:
            read()
        assert str(caught.value).startswith(expected)


def test_what_a_handler_needs_is_missed_when_the_data_is_opened(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl has no column 'messages'; it has message"):
        table(tmp_path, [{"message": MESSAGES}], encode("messages", folder))
    with pytest.raises(DataError, match="has no column 'instruction'"):
        table(tmp_path, [{"output": "x"}], encode("alpaca", folder))
    with pytest.raises(TokenizerError):
        table(tmp_path, [{"text": "x"}], encode("text", tmp_path / "elsewhere"))


ROWS = [{"text": "abcdefghijklmnop"[: 1 + number], "number": number, "kind": f"k{number % 3}"} for number in range(12)]
METHODS = [
    method("take", n=5),
    method("take", n=100),
    method("skip", n=5),
    method("select", indices=[3, 1, 3]),
    method("shard", num_shards=3, index=1),
    method("shard", num_shards=5, index=0, contiguous=False),
    method("shuffle", seed=7),
    method("repeat", num_times=2),
    method("remove_columns", column_names=["kind"]),
    method("remove_columns", column_names="kind"),
    method("select_columns", column_names=["text", "number"]),
    method("rename_column", original_column_name="kind", new_column_name="sort"),
    method("rename_columns", column_mapping={"kind": "sort", "number": "n"}),
    method("sort", column_names=["kind", "number"], reverse=[False, True]),
    method("flatten"),
    method("class_encode_column", column="kind"),
]


@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")
@pytest.mark.parametrize("handler", METHODS, ids=lambda handler: handler.name)
def test_methods_do_what_the_library_does(tmp_path: Path, handler: Any) -> None:
    own = datasets.Dataset.from_list(ROWS)
    expected = getattr(own, handler.name)(**handler.arguments).to_list()
    records = table(tmp_path, ROWS, handler)
    names = list(records.column_names)
    assert [dict(records.read_columns(number, names)) for number in range(len(records))] == expected


@pytest.mark.parametrize("handler", METHODS[:8], ids=lambda handler: handler.name)
def test_rows_are_picked_behind_a_handler_as_before_it(tmp_path: Path, folder: Path, handler: Any) -> None:
    before = table(tmp_path, ROWS, handler, encode("text", folder))
    behind = table(tmp_path, ROWS, encode("text", folder), handler)
    assert len(before) == len(behind)
    for number in range(len(before)):
        first, second = (records.read_columns(number, ["input_ids"])["input_ids"] for records in (before, behind))
        assert first.tolist() == second.tolist()


def test_columns_are_renamed_behind_a_handler(tmp_path: Path, folder: Path) -> None:
    rename = method("rename_column", original_column_name="labels", new_column_name="target_ids")
    records = table(tmp_path, ROWS, encode("text", folder), rename)
    assert list(records.column_names) == ["input_ids", "target_ids"]
    assert len(records) == len(ROWS)
    row = records.read_columns(2, ["target_ids", "input_ids"])
    assert row["target_ids"].tolist() == row["input_ids"].tolist()
    assert records.describe(2).endswith("row 2")
    with pytest.raises(DataError, match="has no column 'labels'; it has input_ids, target_ids"):
        records.read_columns(0, ["labels"])


def test_rows_of_packed_rows_are_picked(tmp_path: Path, folder: Path) -> None:
    packed = table(tmp_path, ROWS, encode("text", folder), pack(20))
    taken = table(tmp_path, ROWS, encode("text", folder), pack(20), method("skip", n=1), method("take", n=2))
    assert (len(taken), taken.describe(0)) == (2, packed.describe(1))
    for name in packed.column_names:
        assert taken.read_columns(1, [name])[name].tolist() == packed.read_columns(2, [name])[name].tolist()


def test_a_shuffle_without_a_seed_has_the_tasks(tmp_path: Path) -> None:
    """The library would draw one, and every process another."""

    def numbers(*handlers: HandlerOptions, seed: int = 0) -> list[int]:
        records = table(tmp_path, ROWS, *handlers, seed=seed)
        return [records.read_columns(number, ["number"])["number"] for number in range(len(records))]

    assert (
        numbers(method("shuffle"), seed=3) == numbers(method("shuffle", seed=3)) != numbers(method("shuffle"), seed=4)
    )


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (method("take", n="many"), "data handler 'take': "),
        (method("remove_columns", column_names=["colour"]), "data handler 'remove_columns': "),
        (method("shard", num_shards=2, index=5), "data handler 'shard': index should be in"),
    ],
)
def test_what_a_method_refuses_names_it(tmp_path: Path, folder: Path, handler: Any, expected: str) -> None:
    for handlers in ([handler], [encode("text", folder), handler]):
        with pytest.raises(DataError) as caught:
            table(tmp_path, ROWS, *handlers)
        assert f"rows.jsonl: {expected}" in str(caught.value)


def test_a_method_of_tables_behind_a_handler(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="'sort' needs a table"):
        table(tmp_path, ROWS, encode("text", folder), method("sort", column_names="input_ids"))


@pytest.mark.usefixtures("no_plugins")
def test_plugins_and_built_in_handlers_in_turn(tmp_path: Path, folder: Path, tokenizer: Tokenizer) -> None:
    plugins.data_handler("Upper")(lambda: lambda row: {"text": row["text"].upper()})
    plugins.data_handler("Short")(lambda keep: lambda row: {name: ids[:keep] for name, ids in row.items()})
    handlers = [
        method("take", n=6),
        PluginOptions("Upper", {}),
        encode("text", folder),
        PluginOptions("Short", {"keep": 3}),
        pack(7),
    ]
    records = table(tmp_path, ROWS, *handlers)
    shown = [texts(tokenizer, records, number)[0] for number in range(len(records))]
    assert sorted("".join(shown).replace("<|pad|>", "")) == sorted("A<|end|>" + "AB<|end|>" + "ABC" * 4)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_what_is_learnt_is_the_answer(tmp_path_factory: Any, instruction: str, context: str, answer: str) -> None:
    from runformer.data.tables.encode import _instructions

    class Rows(Records):
        name, column_names = "here", ["instruction", "input", "output"]

        def __len__(self) -> int:
            return 1

        def describe(self, record: int) -> str:
            return f"row {record}"

        def read_columns(self, record: int, columns: Any) -> dict[str, Any]:
            return {name: row[name] for name in columns} if record == 0 else {}

    folder = tmp_path_factory.getbasetemp() / "bytes"
    if not folder.exists():
        write_byte_tokenizer(folder)
    own = load_tokenizer(folder)
    row = {"instruction": instruction, "input": context, "output": answer}
    columns, encode_rows = _instructions(Rows(), encode("alpaca", folder), own)
    (encoded,) = encode_rows([Rows().read_columns(0, columns)])
    learnt = [token for token, label in zip(encoded.tokens, encoded.labels, strict=True) if label != -100]
    assert own.decode(learnt, False) == f" {answer}<|end|>"
    assert [label for label in encoded.labels if label != -100] == encoded.tokens[-len(learnt) :]


def test_text_needs_handlers_and_they_a_tokenizer(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps([{"messages": MESSAGES}]))
    files = TableFiles((tmp_path / "x.json",), "json", {"train": (tmp_path / "x.json",)})
    with pytest.raises(DataError) as caught:
        TokenDataset(DataOptions(files, ("input_ids",), None, 0), 16, 300)
    assert "data handlers make tokens of text: MessagesDataHandler" in str(caught.value)
    without = replace(encode("messages", folder), tokenizer=TokenizerOptions())
    with pytest.raises(TokenizerError, match=r"eval_dataset.data_loader.handler\[0\].tokenizer is not set"):
        open_table(replace(files, handlers=(without,)), seed=0, pad_token_id=None, section="eval_dataset")
