"""``vocab.json`` + ``merges.txt`` and tiktoken files: the oracles are ``transformers`` and ``tiktoken``."""

from __future__ import annotations

import base64
import importlib.util
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given
from tokenizer_texts import ANY_TEXT, HARD, add_special, assert_same, real_lines, train_byte_level, write_json
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from runformer.config.task import TokenizerOptions
from runformer.tokenizer import Tokenizer, load_tokenizer

# Written down here once more, from the releases of the two families, to check the package against.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = QWEN_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|")
QWEN_CHAT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    trained = train_byte_level()
    trained.model.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Qwen2's, without its ``tokenizer.json``."""
    folder = tmp_path_factory.mktemp("qwen")
    train_byte_level(QWEN_PATTERN, normalize=True).model.save(str(folder))
    added = {str(600 + index): {"content": token, "special": True} for index, token in enumerate(QWEN_CHAT)}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "added_tokens_decoder": {index: {**token, "normalized": False} for index, token in added.items()},
    }
    write_json(folder / "tokenizer_config.json", config)
    return folder


@pytest.fixture(scope="module")
def gpt2(gpt2_folder: Path) -> tuple[Tokenizer, Any]:
    files = TokenizerOptions(vocab_file=gpt2_folder / "vocab.json", merges_file=gpt2_folder / "merges.txt")
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "!")  # no <|endoftext|> in this one
    oracle = GPT2Tokenizer(str(files.vocab_file), str(files.merges_file), **special)
    return load_tokenizer(None, TokenizerOptions(vocab_file=files.vocab_file, special_tokens=special)), oracle


@pytest.fixture(scope="module")
def qwen(qwen_folder: Path) -> tuple[Tokenizer, Any]:
    return load_tokenizer(qwen_folder), Qwen2Tokenizer.from_pretrained(qwen_folder)


@given(text=ANY_TEXT)
def test_gpt2_files_as_transformers(gpt2: tuple[Tokenizer, Any], text: str) -> None:
    assert_same(*gpt2, text)


@given(text=ANY_TEXT)
def test_qwen2_files_as_transformers(qwen: tuple[Tokenizer, Any], text: str) -> None:
    assert_same(*qwen, text)


def test_real_text_as_transformers(gpt2: tuple[Tokenizer, Any], qwen: tuple[Tokenizer, Any], shared_dir: Path) -> None:
    for line in [*real_lines(shared_dir), *HARD]:
        assert_same(*gpt2, line)
        assert_same(*qwen, line)


def test_saved_as_json_or_as_two_files_it_is_the_same(qwen_folder: Path, tmp_path: Path) -> None:
    trained = train_byte_level(QWEN_PATTERN, normalize=True)
    add_special(trained, *QWEN_CHAT)
    trained.save(str(tmp_path / "tokenizer.json"))
    one, two = load_tokenizer(tmp_path), load_tokenizer(qwen_folder)
    for text in HARD:
        assert one.encode(text) == two.encode(text)


def test_a_published_qwen_recipe_without_a_config(qwen_folder: Path, tmp_path: Path) -> None:
    """Only the two files and what the YAML says: the chat tokens stand behind the vocabulary."""
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((qwen_folder / name).read_bytes())
    options = TokenizerOptions(
        kind="qwen2_5_tokenizer.Qwen2Tokenizer",
        vocab_file=tmp_path / "vocab.json",
        merges_file=tmp_path / "merges.txt",
        special_tokens={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"},
    )
    ours, with_config = load_tokenizer(None, options), load_tokenizer(qwen_folder)
    assert (ours.pad_id, ours.eos_id, ours.bos_id, ours.unk_id, ours.vocab_size) == (600, 602, None, None, 603)
    for text in HARD:
        assert ours.encode(text) == with_config.encode(text)


def test_the_model_config_tells_a_qwen_vocabulary(qwen_folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((qwen_folder / name).read_bytes())
    write_json(tmp_path / "config.json", {"model_type": "qwen2"})
    assert load_tokenizer(tmp_path).encode("<|im_end|>1234 e\u0301") == load_tokenizer(qwen_folder).encode(
        "<|im_end|>1234 e\u0301"
    )


def test_added_tokens_file_of_older_folders(gpt2_folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((gpt2_folder / name).read_bytes())
    write_json(tmp_path / "added_tokens.json", {"<|end|>": 600, "<|pad|>": 700})
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": "<|end|>", "pad_token": "<|pad|>"})
    ours = load_tokenizer(tmp_path)
    assert (ours.eos_id, ours.pad_id, ours.vocab_size) == (600, 700, 701)
    assert ours.encode("a<|pad|>")[-1] == 700
    assert ours.decode(ours.encode("a<|pad|>b<|end|>")) == "ab"


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """A tiktoken vocabulary: the pieces of a trained BPE as bytes, in order of id."""
    alphabet = {character: byte for byte, character in enumerate(byte_characters())}
    vocabulary = train_byte_level(LLAMA3_PATTERN).get_vocab()
    return {bytes(alphabet[character] for character in piece): index for piece, index in vocabulary.items()}


def byte_characters() -> str:
    """GPT-2's byte alphabet, from the other side: the bytes without a printable character come last."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return "".join(chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256))


def write_ranks(file: Path, ranks: dict[bytes, int]) -> Path:
    lines = (
        f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in sorted(ranks.items(), key=lambda x: x[1])
    )
    file.write_text("".join(lines))
    return file


class TiktokenOracle:
    """tiktoken with the two methods that the comparison calls."""

    def __init__(self, ranks: dict[bytes, int], pattern: str, special: list[str]) -> None:
        ids = {token: len(ranks) + index for index, token in enumerate(special)}
        self.special = set(ids.values())
        self.encoding = tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens=ids)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:  # noqa: ARG002  it never adds any
        return self.encoding.encode(text, allowed_special="all")

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        kept = [index for index in ids if not (skip_special_tokens and index in self.special)]
        return self.encoding.decode(kept)


@pytest.fixture(scope="module")
def llama3(ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, TiktokenOracle]:
    file = write_ranks(tmp_path_factory.mktemp("llama3") / "tokenizer.model", ranks)
    ours = load_tokenizer(None, TokenizerOptions(kind="Llama3Tokenizer", vocab_file=file))
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"]
    return ours, TiktokenOracle(ranks, LLAMA3_PATTERN, special)


@given(text=ANY_TEXT)
def test_tiktoken_file_as_tiktoken(llama3: tuple[Tokenizer, TiktokenOracle], text: str) -> None:
    assert_same(*llama3, text)


def test_real_text_as_tiktoken(llama3: tuple[Tokenizer, TiktokenOracle], shared_dir: Path) -> None:
    for line in [*real_lines(shared_dir), *HARD, "<|begin_of_text|>hi<|end_of_text|>"]:
        assert_same(*llama3, line)


def test_llama3_special_tokens(llama3: tuple[Tokenizer, TiktokenOracle]) -> None:
    """Offsets as in Llama 3.1's published ``tokenizer_config.json``, whose vocabulary has 128,000 ranks."""
    ours, _ = llama3
    offsets = {"<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|start_header_id|>": 6, "<|end_header_id|>": 7}
    offsets |= {"<|eom_id|>": 8, "<|eot_id|>": 9, "<|python_tag|>": 10, "<|reserved_special_token_247|>": 255}
    for token, offset in offsets.items():
        assert ours.encode(token) == [600 + offset]
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (600, 601, 600 + 256)
    assert ours.encode("a") == ours.encode("a", add_special_tokens=False)


def test_tiktoken_file_as_transformers(ranks: dict[bytes, int], tmp_path: Path) -> None:
    write_ranks(tmp_path / "tokenizer.model", ranks)
    added = {str(600 + index): {"content": token, "special": True} for index, token in enumerate(["<bos>", "<eos>"])}
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True, "added_tokens_decoder": added}
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **config})
    ours, oracle = load_tokenizer(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in HARD:
        assert_same(ours, oracle, text)
    assert ours.vocab_size == 602


def test_the_real_qwen_vocabulary() -> None:
    spec = importlib.util.find_spec("dashscope")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package dashscope, which ships qwen.tiktoken, is not installed")
    file = Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    ours = load_tokenizer(None, TokenizerOptions(vocab_file=file))
    assert ours.encode("Hello, world! 你好，世界") == [9707, 11, 1879, 0, 220, 108386, 3837, 99489]
    assert [ours.encode(token) for token in QWEN_CHAT] == [[151643], [151644], [151645]]
    oracle = TiktokenOracle(tiktoken.load.load_tiktoken_bpe(str(file)), QWEN_PATTERN, QWEN_CHAT)
    for text in HARD:
        assert_same(ours, oracle, unicodedata.normalize("NFC", text))
    assert ours.encode("e\u0301") == ours.encode("é")
