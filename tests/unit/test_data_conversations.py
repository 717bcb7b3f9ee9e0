"""What is learnt of a conversation: the oracle is transformers' ``apply_chat_template``, or the text itself."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import CHAT, write_byte_tokenizer
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from runformer.data import IGNORED
from runformer.data.conversations import (
    Encoded,
    conversation_samples,
    encode_alpaca,
    encode_conversation,
    encode_pieces,
    encode_text,
    encode_texts,
)
from runformer.errors import DataError, TokenizerError
from runformer.tokenizer import Tokenizer, load_tokenizer

MARKED = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|end|>{% endgeneration %}\n"
    "{% else %}{{ message.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As Qwen3's: thoughts stay with the last answer only, and are there even when empty.
FORGETFUL = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}"
    "{% set thought, answer = (message.content.split('~') if '~' in message.content else ['', message.content]) %}"
    "{% if loop.last %}({{ thought }}){% endif %}{{ answer }}"
    "{% else %}{{ message.content }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SYSTEM_FIRST = "{{ 'S' if messages[0].role != 'system' }}" + CHAT
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Sky?"},
    {"role": "assistant", "content": "blue"},
    {"role": "user", "content": "Sea?"},
    {"role": "assistant", "content": "green"},
]
ROLES = st.sampled_from(["system", "user", "assistant"])
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd1<~"), max_size=12)
TALKS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXT}), min_size=1, max_size=7)


def tokenizer_with(folder: Path, template: str | None, pad: str | None = "<|pad|>") -> Tokenizer:
    return load_tokenizer(write_byte_tokenizer(folder, template, pad))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    templates = {"plain": CHAT, "marked": MARKED, "forgetful": FORGETFUL, "system": SYSTEM_FIRST}
    return {name: tokenizer_with(tmp_path_factory.mktemp(name), text) for name, text in templates.items()}


def learnt(tokenizer: Tokenizer, encoded: Encoded) -> list[str]:
    """The texts of the stretches that are learnt."""
    assert len(encoded.tokens) == len(encoded.labels)
    assert all(label in (IGNORED, token) for token, label in zip(encoded.tokens, encoded.labels, strict=True))
    marks = "".join("." if label == IGNORED else "x" for label in encoded.labels)
    texts, position = [], 0
    for stretch in marks.replace(".x", ". x").replace("x.", "x .").split():
        if stretch[0] == "x":
            ids = encoded.tokens[position : position + len(stretch)]
            texts.append(tokenizer.decode(ids, skip_special_tokens=False))
        position += len(stretch)
    return texts


def text_of(tokenizer: Tokenizer, encoded: Encoded) -> str:
    return tokenizer.decode(encoded.tokens, skip_special_tokens=False)


def test_every_turn_of_the_assistant_is_learnt_with_its_end(tokenizers: dict[str, Tokenizer]) -> None:
    encoded = encode_conversation(tokenizers["plain"], TALK)
    assert text_of(tokenizers["plain"], encoded) == (
        "<|system|>Be kind.<|end|><|user|>Sky?<|end|><|assistant|>blue<|end|>"
        "<|user|>Sea?<|end|><|assistant|>green<|end|>"
    )
    assert learnt(tokenizers["plain"], encoded) == ["blue<|end|>", "green<|end|>"]


def test_a_question_after_the_last_answer_is_left_away(tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        longer = [*TALK, {"role": "user", "content": "And?"}]
        assert encode_conversation(tokenizer, longer) == encode_conversation(tokenizer, TALK)


@settings(max_examples=60, deadline=None)
@given(TALKS)
def test_marked_templates_as_transformers(tokenizers: dict[str, Tokenizer], talk: list[dict[str, str]]) -> None:
    tokenizer = tokenizers["marked"]
    if not (turns := [number for number, message in enumerate(talk) if message["role"] == "assistant"]):
        with pytest.raises(DataError, match="no message has the role 'assistant'"):
            encode_conversation(tokenizer, talk)
        return
    encoded = encode_conversation(tokenizer, talk)
    oracle = AutoTokenizer.from_pretrained(tokenizer.file.parent)
    expected = oracle.apply_chat_template(
        talk[: turns[-1] + 1], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.tokens == expected["input_ids"]
    assert [label != IGNORED for label in encoded.labels] == [bool(flag) for flag in expected["assistant_masks"]]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["plain", "system", "forgetful"]), TALKS)
def test_the_tokens_are_those_of_the_whole_and_of_the_prompts(
    tokenizers: dict[str, Tokenizer], name: str, talk: list[dict[str, str]]
) -> None:
    tokenizer = tokenizers[name]
    turns = [number for number, message in enumerate(talk) if message["role"] == "assistant"]
    assume(name != "forgetful" or all(later - turn > 1 for turn, later in pairwise(turns)))
    if not turns or (turns[0] == 0 and name == "system"):
        with pytest.raises((DataError, TokenizerError)):
            encode_conversation(tokenizer, talk)
        return
    encoded = encode_conversation(tokenizer, talk)
    talk = talk[: turns[-1] + 1]
    assert encoded.tokens == tokenizer.encode(tokenizer.apply_chat_template(talk, False), add_special_tokens=False)
    prompt = tokenizer.encode(tokenizer.apply_chat_template(talk[:-1], True), add_special_tokens=False)
    assert encoded.tokens[: len(prompt)] == prompt
    assert encoded.labels[len(prompt) :] == encoded.tokens[len(prompt) :]
    if name != "forgetful":
        endings = [message["content"] + "<|end|>" for message in talk if message["role"] == "assistant"]
        counted = sum(len(tokenizer.encode(ending, add_special_tokens=False)) for ending in endings)
        assert sum(label != IGNORED for label in encoded.labels) == counted


def test_turns_that_a_template_writes_anew_are_learnt_in_samples_of_their_own(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["forgetful"]
    talk = [TALK[1], {"role": "assistant", "content": "day~blue"}, TALK[3], {"role": "assistant", "content": "sky~so"}]
    samples = encode_pieces(tokenizer, conversation_samples(tokenizer, talk))
    assert [learnt(tokenizer, sample) for sample in samples] == [["(sky)so<|end|>"], ["(day)blue<|end|>"]]
    assert [text_of(tokenizer, sample) for sample in samples] == [
        "<|user|>Sky?<|end|><|assistant|>blue<|end|><|user|>Sea?<|end|><|assistant|>(sky)so<|end|>",
        "<|user|>Sky?<|end|><|assistant|>(day)blue<|end|>",
    ]
    assert encode_conversation(tokenizer, talk) == samples[0]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages | length }}", "writes an answer differently"),
        (
            "{% if add_generation_prompt %}<think>{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}",
            "different",
        ),
        ("{{ raise_exception('no system') }}", "no system"),
        (None, "has no chat template"),
    ],
)
def test_templates_that_cannot_do_it(tmp_path: Path, template: str | None, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        encode_conversation(tokenizer_with(tmp_path, template), TALK)
    assert caught.value.hint


def test_marks_in_a_text_are_no_marks(tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(DataError, match="no characters"):
        encode_conversation(tokenizers["marked"], [TALK[1], {"role": "assistant", "content": "a\ufdd0b"}])
    assert len(conversation_samples(tokenizers["plain"], [TALK[1], {"role": "assistant", "content": "a\ufdd0b"}])) == 1


@pytest.mark.parametrize("template", ["chat", "alpaca", None])
def test_alpaca(tokenizers: dict[str, Tokenizer], template: Any) -> None:
    tokenizer = tokenizers["plain"]
    encoded = encode_alpaca(tokenizer, "Sky?", "day", "blue", template)
    assert learnt(tokenizer, encoded) == ["blue<|end|>"]
    if template == "alpaca":
        assert "paired with an input" in text_of(tokenizer, encoded)
        assert "### Instruction:\nSky?\n\n### Input:\nday\n\n### Response:\nblue" in text_of(tokenizer, encoded)
        assert "### Input" not in text_of(tokenizer, encode_alpaca(tokenizer, "Sky?", "", "blue", template))
    else:
        assert text_of(tokenizer, encoded) == "<|user|>Sky?\nday<|end|><|assistant|>blue<|end|>"


def test_alpaca_without_a_chat_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, None)
    assert encode_alpaca(tokenizer, "a", "b", "c") == encode_alpaca(tokenizer, "a", "b", "c", "alpaca")


def test_texts_end_once(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = tokenizers["plain"]
    end = tokenizer.eos_id
    plain = tokenizer.encode("blue")
    assert encode_text(tokenizer, "blue") == encode_text(tokenizer, "blue<|end|>") == [*plain, end]
    assert encode_texts(tokenizer, ["", "blue"], append_eos=False) == [[], plain]
    with pytest.raises(TokenizerError, match="not valid Unicode text: 'a\\\\ud800'"):
        encode_texts(tokenizer, ["blue", "a\ud800"])
    folder = write_byte_tokenizer(tmp_path)
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TokenizerError, match="no end token"):
        encode_text(load_tokenizer(folder), "blue")
