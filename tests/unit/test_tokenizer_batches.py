"""Many texts and long ones: word by word, in stretches, and always with the ids that ``encode`` gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import ANY_TEXT, CHINESE, CORPUS, HARD, add_special, train_byte_level, write_json
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from runformer.errors import TokenizerError
from runformer.tokenizer import Tokenizer, load_tokenizer, stretches
from runformer.tokenizer import tokenizer as tokenizer_module
from runformer.tokenizer.byte_level import LLAMA3, QWEN
from runformer.tokenizer.stretches import cut_long
from runformer.tokenizer.words import cuts_at_words

MIXED = st.lists(
    st.sampled_from([*"abcXYZ", " ", "  ", "\n", "'s", "'RE", "12", "1", ",", ".", "—", "é", "e\u0301", "你"])
)
TEXTS = st.lists(st.one_of(ANY_TEXT, MIXED.map("".join)), max_size=6)


def spaced() -> tokenizers.Tokenizer:
    """As SentencePiece's: no text is cut before merging, and a space is put before it."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *bytes_], show_progress=False)
    backend.train_from_iterator([word for line in CORPUS for word in line.replace(" ", " ▁").split(" ")], trainer)
    return backend


def digits() -> tokenizers.Tokenizer:
    backend = train_byte_level()
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), to_bytes])
    return backend


MAKERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "gpt2": train_byte_level,
    "qwen": lambda: train_byte_level(QWEN.pattern, normalize=True),
    "llama3": lambda: train_byte_level(LLAMA3.pattern),
    "digits": digits,
    "spaced": spaced,
}
CUT_AT_WORDS = [name for name in MAKERS if name != "spaced"]


def write(folder: Path, backend: tokenizers.Tokenizer) -> Tokenizer:
    add_special(backend, "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>")
    surround = processors.TemplateProcessing(
        single="<s> $A <|im_end|>",
        special_tokens=[(each, backend.token_to_id(each)) for each in ("<s>", "<|im_end|>")],
    )
    backend.post_processor = surround
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {name: write(tmp_path_factory.mktemp(name), make()) for name, make in MAKERS.items()}


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=150, deadline=None)
@given(texts=TEXTS, special=st.booleans())
def test_a_batch_is_its_texts(loaded: dict[str, Tokenizer], name: str, texts: list[str], special: bool) -> None:
    tokenizer = loaded[name]
    expected = [tokenizer.encode(text, add_special_tokens=special) for text in texts]
    assert tokenizer.encode_batch(texts, add_special_tokens=special) == expected


@pytest.mark.parametrize("name", MAKERS)
def test_hard_texts_twice(loaded: dict[str, Tokenizer], name: str) -> None:
    """The second time words come from the table."""
    texts = [*HARD, *CORPUS[:300], "\n".join(CORPUS[:300]), " ".join(CHINESE)]
    for _ in range(2):
        assert loaded[name].encode_batch(texts) == [loaded[name].encode(text) for text in texts]


def test_which_tokenizers_are_asked_word_by_word(tmp_path: Path) -> None:
    for name, make in MAKERS.items():
        assert cuts_at_words(make()) == (name in CUT_AT_WORDS)
    for token in (
        AddedToken("<x>", rstrip=True),
        AddedToken("<x>", lstrip=True),
        AddedToken("two words"),
        AddedToken("x", single_word=True),
    ):
        backend = train_byte_level()
        backend.add_tokens([token])
        assert not cuts_at_words(backend)
    other = train_byte_level("[a-z ]+")
    assert not cuts_at_words(other)
    prefixed = train_byte_level()
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert not cuts_at_words(prefixed)
    assert write(tmp_path, prefixed).encode_batch(["a b", "c"]) == [
        load_tokenizer(tmp_path).encode(t) for t in ("a b", "c")
    ]


@pytest.mark.parametrize("name", MAKERS)
def test_long_texts_come_in_stretches(loaded: dict[str, Tokenizer], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "_LONG_TEXT", 500)
    tokenizer = loaded[name]
    text = "\n".join(CORPUS[:400])
    cut = cut_long(text, 500, lambda part: tokenizer.encode(part, add_special_tokens=False))
    assert "".join(stretch.text for stretch in cut) == text
    assert len(cut) > len(text) / 1000
    for special in (True, False):
        assert tokenizer.encode_batch(["a", text, "b"], special) == [
            tokenizer.encode(t, special) for t in ("a", text, "b")
        ]


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=60, deadline=None)
@given(text=st.lists(st.one_of(ANY_TEXT, MIXED.map("".join)), min_size=10, max_size=60).map("".join))
def test_any_long_text(loaded: dict[str, Tokenizer], name: str, text: str) -> None:
    tokenizer = loaded[name]
    cut = cut_long(text, 40, lambda part: tokenizer.encode(part, add_special_tokens=False))
    assert "".join(stretch.text for stretch in cut) == text
    ids = [i for each in cut for i in tokenizer.encode(each.text, add_special_tokens=False)[each.skip :]]
    assert ids == tokenizer.encode(text, add_special_tokens=False)


def test_a_text_without_a_place_to_cut_stays_whole() -> None:
    asked: list[str] = []

    def count(text: str) -> list[int]:
        asked.append(text)
        return [len(text)]

    assert [each.text for each in cut_long("a b\n" * 5000, 100, count)] == ["a b\n" * 5000]
    assert len(asked) <= 6 * 2 * 20 * stretches._GIVE_UP  # and it is not tried for ever


def test_what_is_no_text(loaded: dict[str, Tokenizer]) -> None:
    for tokenizer in loaded.values():
        with pytest.raises(TokenizerError, match="not valid Unicode"):
            tokenizer.encode_batch(["fine", "half \ud800 of a pair"])
        assert tokenizer.encode_batch(["fine"]) == [tokenizer.encode("fine")]
