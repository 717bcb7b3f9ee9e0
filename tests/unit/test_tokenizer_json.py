"""``tokenizer.json`` folders: the oracle is ``transformers``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from tokenizer_texts import ANY_TEXT, HARD, add_special, assert_same, real_lines, train_byte_level, write_json
from tokenizers import processors
from transformers import AutoTokenizer

from runformer.config.task import TokenizerOptions
from runformer.errors import TokenizerError
from runformer.tokenizer import Tokenizer, load_tokenizer

Pair = tuple[Tokenizer, Any]


def both(folder: Path) -> Pair:
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model's folder: added tokens in the config, strings and objects as special tokens."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = train_byte_level()
    add_special(tokenizer, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_tokens(["<tool_call>"])
    tokenizer.enable_truncation(max_length=7)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False, "normalized": False},
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "clean_up_tokenization_spaces": True,
    }
    write_json(folder / "tokenizer_config.json", config)
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    ours, oracle = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder, padding_side="right")
    oracle.backend_tokenizer.no_truncation()  # ours never cuts
    return ours, oracle


@pytest.mark.parametrize("text", HARD)
def test_hard_text_as_transformers(pair: Pair, text: str) -> None:
    assert_same(*pair, text)


@given(text=ANY_TEXT)
def test_any_text_as_transformers(pair: Pair, text: str) -> None:
    assert_same(*pair, text)


def test_real_text_as_transformers(pair: Pair, shared_dir: Path) -> None:
    for line in real_lines(shared_dir):
        assert_same(*pair, line)


def test_attributes(pair: Pair) -> None:
    ours, oracle = pair
    assert (ours.bos_id, ours.unk_id) == (None, None)
    assert ours.eos_id == oracle.convert_tokens_to_ids("<|im_end|>")
    assert ours.pad_id == oracle.convert_tokens_to_ids("<|endoftext|>")
    assert ours.vocab_size == max(oracle.get_vocab().values()) + 1


def test_special_tokens_are_skipped_and_added_text_is_not(pair: Pair) -> None:
    ours, _ = pair
    ids = ours.encode("<|im_start|>a <tool_call>b<|im_end|>")
    assert ours.decode(ids) == "a <tool_call>b"
    assert ours.decode(ids, skip_special_tokens=False) == "<|im_start|>a <tool_call>b<|im_end|>"


def test_ids_without_a_token_decode_to_nothing(pair: Pair) -> None:
    ours, _ = pair
    ids = ours.encode("text")
    assert ours.decode([*ids, ours.vocab_size, ours.vocab_size + 1000]) == "text"


def test_mindformers_oracle_prompts(shared_dir: Path, oracle_dir: Path) -> None:
    ours, oracle = both(oracle_dir / "predict_greedy" / "tokenizer")
    for line in [*real_lines(shared_dir), *HARD]:
        assert_same(ours, oracle, line)
    rows = (oracle_dir / "predict_greedy" / "expected.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, rows):
        prompt_ids = ours.encode(row["prompt"])
        assert row["output_ids"][: len(prompt_ids)] == prompt_ids


def test_a_recipe_that_puts_tokenizer_json_under_vocab_file(oracle_dir: Path) -> None:
    file = oracle_dir / "predict_greedy" / "tokenizer" / "tokenizer.json"
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<s>", "unk_token": "<unk>"}
    options = TokenizerOptions(
        kind="LlamaTokenizerFast", vocab_file=file, special_tokens=special, add_bos_token=False, add_eos_token=False
    )
    ours = load_tokenizer(None, options)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (0, 0, 1, 3)
    assert ours.encode("The quiet teacher") == [338, 422, 354]


@pytest.fixture
def bos_folder(tmp_path: Path) -> Path:
    """As Llama 3's: the post-processor in ``tokenizer.json`` adds bos."""
    tokenizer = train_byte_level(size=300)
    add_special(tokenizer, "<bos>", "<eos>")
    bos = ("<bos>", tokenizer.token_to_id("<bos>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": False})
    return tmp_path


def test_the_post_processor_of_tokenizer_json_is_kept(bos_folder: Path) -> None:
    ours, oracle = both(bos_folder)
    assert ours.encode("ab")[0] == ours.bos_id
    for text in HARD:
        assert_same(ours, oracle, text)
        assert_same(ours, oracle, text, add_special_tokens=False)


@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("add_eos", [None, True, False])
def test_the_recipe_decides_on_bos_and_eos(bos_folder: Path, add_bos: bool | None, add_eos: bool | None) -> None:
    ours = load_tokenizer(bos_folder, TokenizerOptions(add_bos_token=add_bos, add_eos_token=add_eos))
    plain = ours.encode("ab", add_special_tokens=False)
    before = [] if add_bos is False else [ours.bos_id]
    assert ours.encode("ab") == before + plain + ([ours.eos_id] if add_eos else [])


def test_one_token_for_bos_and_eos_counts_once(tmp_path: Path) -> None:
    tokenizer = train_byte_level(size=300)
    add_special(tokenizer, "<end>")
    end = tokenizer.token_to_id("<end>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", end)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    named = {"bos_token": "<end>", "eos_token": "<end>"}
    ours = load_tokenizer(tmp_path, TokenizerOptions(special_tokens=named, add_bos_token=True))
    assert ours.encode("a") == [end, *tokenizer.encode("a", add_special_tokens=False).ids]


def test_bos_asked_for_but_not_named(folder: Path) -> None:
    with pytest.raises(TokenizerError, match="add_bos_token is true, but there is no bos_token"):
        load_tokenizer(folder, TokenizerOptions(add_bos_token=True))


def test_special_tokens_of_the_recipe_win(folder: Path) -> None:
    ours = load_tokenizer(folder, TokenizerOptions(special_tokens={"eos_token": "<|endoftext|>"}))
    assert ours.eos_id == ours.pad_id


def test_special_tokens_map_wins_over_an_old_config(tmp_path: Path) -> None:
    tokenizer = train_byte_level(size=300)
    add_special(tokenizer, "<a>", "<b>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<a>"})
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": {"content": "<b>", "lstrip": False}})
    ours, oracle = both(tmp_path)
    assert ours.eos_id == oracle.eos_token_id == tokenizer.token_to_id("<b>")


def test_a_token_named_special_is_matched_and_skipped(tmp_path: Path) -> None:
    """Named in the config only: ``tokenizer.json`` holds it as a plain piece."""
    tokenizer = train_byte_level(size=300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "in"})
    ours, oracle = both(tmp_path)
    for text in ("inside a bin", "in", "other"):
        assert_same(ours, oracle, text)
    assert ours.decode(ours.encode("bin")) == "b"


def test_tokens_that_the_config_adds_behind_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = train_byte_level(size=300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    added = {"300": {"content": "<x>", "special": True}, "301": {"content": "<y>", "lstrip": True, "special": False}}
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<x>", "added_tokens_decoder": added})
    ours, oracle = both(tmp_path)
    assert (ours.eos_id, ours.vocab_size) == (300, 302)
    for text in ("a <x> b <y> c", "a   <y>b<x>"):
        assert_same(ours, oracle, text)


def test_added_tokens_of_another_vocabulary(tmp_path: Path) -> None:
    train_byte_level(size=300).save(str(tmp_path / "tokenizer.json"))
    config = {"added_tokens_decoder": {"32000": {"content": "<pad>", "special": True}}}
    write_json(tmp_path / "tokenizer_config.json", config)
    with pytest.raises(TokenizerError, match="'<pad>' has id 32000, but 300 in tokenizer"):
        load_tokenizer(tmp_path)
