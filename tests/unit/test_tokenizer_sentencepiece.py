"""SentencePiece models: the oracles are ``transformers.LlamaTokenizer`` and ``sentencepiece`` itself."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import assume, given
from tokenizer_texts import ANY_TEXT, CORPUS, HARD, assert_same, real_lines, write_json
from transformers import LlamaTokenizer

from runformer.config.task import TokenizerOptions
from runformer.errors import TokenizerError
from runformer.tokenizer import Tokenizer, load_tokenizer

LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
}
UNIGRAM = {"model_type": "unigram", "byte_fallback": True, "pad_id": 3, "user_defined_symbols": ["<sep>"]}
CONFIGS = {
    "new": {"legacy": False, "add_bos_token": True, "add_eos_token": False},
    "legacy": {"legacy": True, "add_bos_token": True, "add_eos_token": True},
    "no prefix": {"legacy": False, "add_prefix_space": False, "add_bos_token": False},
}


def train(folder: Path, **options: Any) -> Path:
    prefix = folder / "tokenizer"
    trainer = sentencepiece.SentencePieceTrainer
    trainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(prefix),
        vocab_size=700,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return folder


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("llama"), **LLAMA)


@pytest.fixture(scope="module")
def unigram_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("unigram"), **UNIGRAM)


@pytest.fixture(scope="module", params=CONFIGS)
def llama(
    request: pytest.FixtureRequest, llama_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Any]:
    folder = tmp_path_factory.mktemp("configured")
    (folder / "tokenizer.model").write_bytes((llama_folder / "tokenizer.model").read_bytes())
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", **CONFIGS[request.param]})
    return load_tokenizer(folder), LlamaTokenizer.from_pretrained(folder)


@given(text=ANY_TEXT)
def test_any_text_as_transformers(llama: tuple[Tokenizer, Any], text: str) -> None:
    assert_same(*llama, text)


def test_real_text_as_transformers(llama: tuple[Tokenizer, Any], shared_dir: Path) -> None:
    for line in [*real_lines(shared_dir), *HARD]:
        assert_same(*llama, line)


@pytest.fixture(scope="module", params=["llama_folder", "unigram_folder"])
def with_processor(request: pytest.FixtureRequest) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    folder = request.getfixturevalue(request.param)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return load_tokenizer(folder), processor


def plain(text: str) -> bool:
    """Text that means the same to both: nothing removed from its start, no special token spelled out."""
    removed = text[:1].isspace() or unicodedata.category(text[:1] or "a") in ("Cc", "Cf")
    return not removed and "<" not in text and "\x00" not in text


@given(text=ANY_TEXT.filter(plain))
def test_any_text_as_sentencepiece(
    with_processor: tuple[Tokenizer, sentencepiece.SentencePieceProcessor], text: str
) -> None:
    ours, processor = with_processor
    assume(not processor.normalize(text).startswith("▁▁"))
    ids = processor.encode(text)
    assert ours.encode(text, add_special_tokens=False) == ids
    assert ours.decode(ids) == processor.decode(ids)


def test_real_text_as_sentencepiece(
    with_processor: tuple[Tokenizer, sentencepiece.SentencePieceProcessor], shared_dir: Path
) -> None:
    ours, processor = with_processor
    for line in filter(plain, [line.strip() for line in real_lines(shared_dir)]):
        assert ours.encode(line, add_special_tokens=False) == processor.encode(line)


def test_special_ids_of_the_model(unigram_folder: Path) -> None:
    ours = load_tokenizer(unigram_folder)
    assert (ours.unk_id, ours.bos_id, ours.eos_id, ours.pad_id, ours.vocab_size) == (0, 1, 2, 3, 700)
    assert ours.encode("a")[0] == ours.bos_id
    assert ours.encode("a", add_special_tokens=False)[0] != ours.bos_id


def test_user_defined_pieces_are_text_and_control_pieces_are_not(unigram_folder: Path) -> None:
    ours = load_tokenizer(unigram_folder)
    assert ours.decode(ours.encode("a<sep>b</s>")) == "a<sep>b"


def test_unknown_characters_without_byte_fallback(tmp_path: Path) -> None:
    ours = load_tokenizer(train(tmp_path, **{**LLAMA, "byte_fallback": False}), TokenizerOptions(add_bos_token=False))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert ours.encode("the 🙂🙂 ß") == processor.encode("the 🙂🙂 ß")
    assert ours.unk_id in ours.encode("the 🙂🙂 ß")


def test_tokens_added_behind_the_model(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((llama_folder / "tokenizer.model").read_bytes())
    added = {str(index): {"content": token, "special": True} for index, token in enumerate(["<unk>", "<s>", "</s>"])}
    added["700"] = {"content": "<pad>", "special": True, "normalized": False}
    config = {"tokenizer_class": "LlamaTokenizer", "pad_token": "<pad>", "added_tokens_decoder": added}
    write_json(tmp_path / "tokenizer_config.json", {**config, "add_bos_token": True})
    ours, oracle = load_tokenizer(tmp_path), LlamaTokenizer.from_pretrained(tmp_path)
    assert ours.pad_id == oracle.pad_token_id == 700
    for text in HARD:
        assert_same(ours, oracle, text)


def test_models_of_words_are_refused(tmp_path: Path) -> None:
    train(tmp_path, model_type="word", hard_vocab_limit=False)
    with pytest.raises(TokenizerError, match="words or characters"):
        load_tokenizer(tmp_path)
