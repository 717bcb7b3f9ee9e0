"""Missing, damaged and mismatched tokenizer files end in one message that names the file."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer
from tokenizer_texts import CORPUS, train_byte_level, write_json

from runformer.config.task import TokenizerOptions
from runformer.errors import TokenizerError
from runformer.tokenizer import load_tokenizer
from runformer.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good file of every form."""
    folder = tmp_path_factory.mktemp("sources")
    trained = train_byte_level(size=300)
    trained.save(str(folder / "tokenizer.json"))
    trained.model.save(str(folder))
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS[:200]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
        num_threads=1,
    )
    ranks = (f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (folder / "a.tiktoken").write_text("".join(ranks))
    return folder


def test_nothing_named() -> None:
    with pytest.raises(TokenizerError, match="no tokenizer: neither a file nor a folder is given"):
        load_tokenizer(None)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"gone: no such folder"):
        load_tokenizer(tmp_path / "gone")


def test_empty_folder_tells_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"looked for tokenizer\.json, vocab\.json with merges\.txt, tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("field", ["vocab_file", "tokenizer_file"])
def test_missing_named_file(sources: Path, tmp_path: Path, field: str) -> None:
    with pytest.raises(TokenizerError, match=r"vocab\.json: no such tokenizer file"):
        load_tokenizer(sources, TokenizerOptions(**{field: tmp_path / "vocab.json"}))


def test_vocabulary_without_merges(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_bytes((sources / "vocab.json").read_bytes())
    with pytest.raises(TokenizerError, match=r"merges\.txt: no such file"):
        load_tokenizer(None, TokenizerOptions(vocab_file=tmp_path / "vocab.json"))
    with pytest.raises(TokenizerError, match="looked for"):
        load_tokenizer(tmp_path)


def test_the_order_of_search(sources: Path, tmp_path: Path) -> None:
    """The named file, the named folder, the folder of the weights; in a folder, tokenizer.json first."""
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, options, size in (
        (sources, TokenizerOptions(), 300),
        (empty, TokenizerOptions(directory=sources), 300),
        (sources, TokenizerOptions(directory=empty), 300),
        (sources, TokenizerOptions(vocab_file=sources / "tokenizer.model"), 400),
        (sources, TokenizerOptions(vocab_file=sources / "a.tiktoken"), 256 + 256),
    ):
        assert load_tokenizer(folder, options).vocab_size == size
    (empty / "a.tiktoken").write_bytes((sources / "a.tiktoken").read_bytes())
    assert load_tokenizer(sources, TokenizerOptions(directory=empty)).vocab_size == 256 + 256


@pytest.mark.parametrize("name", ["eos_token", "bos_token", "pad_token"])
def test_a_special_token_that_the_vocabulary_lacks(sources: Path, name: str) -> None:
    with pytest.raises(TokenizerError, match=f"processor.tokenizer: the {name} '<none>' is not in the vocabulary"):
        load_tokenizer(sources, TokenizerOptions(special_tokens={name: "<none>"}))


def test_an_unknown_token_that_the_vocabulary_lacks_is_not_needed(sources: Path) -> None:
    assert load_tokenizer(sources, TokenizerOptions(special_tokens={"unk_token": "<unk>"})).unk_id is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", '{"version": "1.0",', r"tokenizer\.json: damaged JSON.*line 1 column"),
        ("tokenizer.json", '{"version": "1.0"}', r"tokenizer\.json: not a tokenizer\.json"),
        ("tokenizer.json", "[1]", "holds list instead of an object"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json: damaged JSON"),
        ("tokenizer_config.json", '{"eos_token": 3}', "eos_token: 3 is no token"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"x": {"content": "a"}}}',
            "added tokens are not ids and tokens",
        ),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added tokens are not ids and tokens"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": "a"}}', "'a' is no token"),
        ("tokenizer_config.json", '{"additional_special_tokens": [null]}', "None is no token"),
        ("tokenizer_config.json", '{"additional_special_tokens": 5}', "5 is no list of tokens"),
        ("tokenizer_config.json", '{"eos_token": "\\ud800"}', r"tokenizer_config\.json: damaged JSON.*surrogates"),
        ("added_tokens.json", '{"<x>": "y"}', r"added_tokens\.json: added tokens are not ids"),
        ("added_tokens.json", '{"<x>": 4294967296}', "not within 0"),
        ("special_tokens_map.json", "nonsense", r"special_tokens_map\.json: damaged JSON"),
    ],
)
def test_damaged_json(sources: Path, tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes((sources / "tokenizer.json").read_bytes())
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", b'{"a": "b"}', "the token 'a' has 'b' instead of an id"),
        ("vocab.json", b'{"a": 1, "b": 1}', "two tokens share an id"),
        ("vocab.json", b"{}", "two tokens share an id, or there are none"),
        ("vocab.json", b"\xff\xfe", "cannot be read"),
        ("merges.txt", b"#version: 0.2\ni n\nabc\n", "line 3: 'abc' is not two pieces"),
        ("merges.txt", "i n\nin 你\n".encode(), "line 2: the piece '你' is not in the vocabulary"),
        ("merges.txt", b"z q\n", "line 1: the piece 'zq' is not in the vocabulary"),
        ("a.tiktoken", b"IQ== 0\nIg== one\n", "line 2: not a base64 token and its rank"),
        ("a.tiktoken", b"IQ== 0\n!!!! 1\n", "line 2: not a base64 token"),
        ("a.tiktoken", b"IQ== 0\n", "a single byte has none"),
        ("tokenizer.model", b"", "neither a whole SentencePiece model nor a tiktoken file"),
        ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\n", "neither a whole SentencePiece model"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "a single byte has none"),
    ],
)
def test_damaged_vocabulary(sources: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    for each in ("vocab.json", "merges.txt") if name in ("vocab.json", "merges.txt") else ():
        (tmp_path / each).write_bytes((sources / each).read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert name in caught.value.message


def test_added_tokens_that_collide_with_the_vocabulary(sources: Path, tmp_path: Path) -> None:
    for each in ("vocab.json", "merges.txt"):
        (tmp_path / each).write_bytes((sources / each).read_bytes())
    taken = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))["a"]
    write_json(tmp_path / "added_tokens.json", {"<x>": taken})
    with pytest.raises(TokenizerError, match=f"'<x>' has id {taken}, which the vocabulary gives to 'a'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "a.tiktoken", "vocab.json", "merges.txt"])
@given(data=st.data())
def test_cut_or_overwritten_files_load_or_explain(
    sources: Path, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """No damage to a file escapes as anything but a TokenizerError, neither in loading nor in use."""
    content = (sources / name).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    noise = data.draw(st.binary(max_size=8))
    cut = data.draw(st.booleans())
    damaged = content[:place] + noise + (b"" if cut else content[place + len(noise) :])
    file = tmp_path_factory.mktemp("damaged") / name
    file.write_bytes(damaged)
    options = TokenizerOptions(
        vocab_file=sources / "vocab.json" if name == "merges.txt" else file,
        merges_file=file if name == "merges.txt" else sources / "merges.txt",
    )
    complaint = complaint_about(options)
    assert complaint is None or str(file) in complaint


def complaint_about(options: TokenizerOptions) -> str | None:
    try:
        tokenizer = load_tokenizer(None, options)
        tokenizer.decode(tokenizer.encode("the 你好 text"))
    except TokenizerError as error:
        return error.message
    return None


def test_half_a_surrogate_pair(sources: Path) -> None:
    with pytest.raises(TokenizerError, match="not valid Unicode text"):
        load_tokenizer(sources).encode("a\ud800b")


def test_a_table_of_characters_that_points_nowhere() -> None:
    """Damage that shows with the first text only: a panic of the library is no Exception, but gets its message."""
    table = struct.pack("<II", 4, 0x3FFFFC00) + b"a\0"  # the length of its tree, one node that leads outside, a string
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer = tokenizers.normalizers.Precompiled(table)
    tokenizer = Tokenizer(backend, {}, None, Path("some/tokenizer.model"))
    with pytest.raises(TokenizerError, match=r"some/tokenizer\.model: damaged: the tokenizers library fails on it"):
        tokenizer.encode("text")
