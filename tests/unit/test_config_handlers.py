"""Data handlers of tables in a task file: what each is made to do, and with which tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_tasks import load
from table_tasks import FILES, LENGTH, Keys, data_of, source_of, text_of

from runformer import plugins
from runformer.config.data_sources import (
    EncodeOptions,
    MethodOptions,
    PackOptions,
    TableFiles,
)
from runformer.config.task import (
    DocumentOptions,
    PluginOptions,
    TokenizerOptions,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def _keeping(keep: int) -> Any:
    return lambda row: {name: ids[:keep] for name, ids in row.items()}


def encoder(form: Any, **changes: Any) -> EncodeOptions:
    return EncodeOptions(form, TokenizerOptions(), LENGTH + 1, **changes)


def test_handlers(folder: Path, no_plugins: object) -> None:  # noqa: ARG001 - others' plug-ins are out of the way
    plugins.data_handler("Mine")(_keeping)
    handler = [
        {"type": "take", "n": 8000},
        {"type": "rename_column", "original_column_name": "q", "new_column_name": "instruction"},
        {"type": "Mine", "keep": 3},
        {
            "type": "AlpacaInstructDataHandler",
            "seq_length": LENGTH,
            "padding": False,
            "tokenizer": {"trust_remote_code": True, "padding_side": "right"},
        },
        {"type": "PackingHandler", "seq_length": LENGTH, "pack_strategy": "pack"},
        {"type": "shuffle"},
    ]
    found = data_of(folder, {"path": "a.json", "handler": handler})
    assert isinstance(found.source, TableFiles)
    assert found.source.handlers == (
        MethodOptions("take", {"n": 8000}),
        MethodOptions("rename_column", {"original_column_name": "q", "new_column_name": "instruction"}),
        PluginOptions("Mine", {"keep": 3}),
        encoder("alpaca", padding=None),
        PackOptions(LENGTH + 1),
        MethodOptions("shuffle", {}),
    )
    assert (found.handlers, found.documents) == ((), DocumentOptions())
    assert found.columns == ("input_ids", "labels", "actual_seq_len")


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"type": "AlpacaInstructDataHandler"}, encoder("alpaca")),
        ({"type": "MessagesDataHandler", "column": "talk"}, encoder("messages", column="talk")),
        ({"type": "TextDataHandler", "padding_side": "left"}, encoder("text", padding="left")),
        ({"type": "TextDataHandler", "tokenizer": {"padding_side": "left"}}, encoder("text", padding="left")),
        ({"type": "PackingHandler", "pack_strategy": "truncate"}, PackOptions(LENGTH + 1, "truncate")),
        ({"type": "PackingHandler", "pad_token_id": 3}, PackOptions(LENGTH + 1, "pack", 3)),
    ],
)
def test_each_built_in_handler(folder: Path, item: Keys, expected: object) -> None:
    assert source_of(folder, {"path": "a.json", "handler": [item]}).handlers == (expected,)


@pytest.mark.parametrize(
    "keys",
    [
        {"tokenizer": "tok"},
        {"tokenizer_name": "tok"},
        {"tokenizer": {"pretrained_model_dir": "tok"}},
    ],
)
def test_the_tokenizers_folder(folder: Path, keys: Keys) -> None:
    """A folder that a handler names wins over the files of processor.tokenizer."""
    handler = [{"type": "TextDataHandler", **keys}]
    text = text_of({"path": "a.json", "handler": handler}) + "processor: {tokenizer: {vocab_file: tok/vocab.txt}}\n"
    train = load(folder, text).train
    assert train is not None
    assert isinstance(train.data.source, TableFiles)
    assert train.data.source.handlers == (EncodeOptions("text", TokenizerOptions(folder / "tok"), LENGTH + 1),)


def test_the_tokenizer_of_the_task_with_what_a_handler_says_besides(folder: Path) -> None:
    def tokenizer(own: Keys) -> TokenizerOptions:
        handler = [{"type": "TextDataHandler", "tokenizer": own}]
        below = "processor: {tokenizer: {type: Qwen2Tokenizer, vocab_file: tok/vocab.txt, pad_token: '<p>'}}\n"
        train = load(folder, text_of({"path": "a.json", "handler": handler}) + below).train
        assert train is not None
        assert isinstance(train.data.source, TableFiles)
        (found,) = train.data.source.handlers
        assert isinstance(found, EncodeOptions)
        return found.tokenizer

    vocabulary = folder / "tok" / "vocab.txt"
    tokens = {"eos_token": "<e>", "pad_token": "<p>"}
    assert tokenizer({"eos_token": "<e>"}) == TokenizerOptions(
        kind="Qwen2Tokenizer", vocab_file=vocabulary, special_tokens=tokens
    )
    own = {"type": "LlamaTokenizer", "vocab_file": "a.json"}
    assert tokenizer(own) == TokenizerOptions(kind="LlamaTokenizer", vocab_file=folder / "a.json")
