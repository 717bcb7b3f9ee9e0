"""What is learnt from texts, instructions and conversations: token ids with labels.

A sample is made of pieces of text, each encoded by itself: the tokens of a prompt are then those that the model is
asked with later, whatever the answer begins with. Labels are the tokens of the assistant's turns, and -100 elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runformer.data import IGNORED
from runformer.errors import DataError, TokenizerError
from runformer.tokenizer import Tokenizer
from runformer.tokenizer.chat import MARKS

TemplateName = Literal["chat", "alpaca"]
Message = Mapping[str, Any]

_MARKED = re.compile(f"{MARKS[0]}|{MARKS[1]}")
_GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\b")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample. ``labels`` has the length of ``tokens``; ``IGNORED`` where nothing is learnt."""

    tokens: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text that is encoded by itself.

    ``opens``: the tokens that the tokenizer puts before a text stand before it. ``closes``: the end token stands
    behind it.
    """

    text: str
    learnt: bool
    opens: bool = False
    closes: bool = False


def encode_conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> Encoded:
    """A conversation (``role`` and ``content`` each) as one sample, by the tokenizer's chat template.

    Learnt is what the template writes after the prompt for an assistant's turn, with its end-of-turn token, or what
    it marks with ``{% generation %}``. Some templates write an earlier turn in another way than they ask for it
    (without its thoughts, say): such a turn is context here, and not learnt. ``conversation_samples`` learns it in a
    sample of its own.

    Raises:
        TokenizerError: there is no chat template, it refuses these messages, or it writes the last answer differently
            from the prompt that asks for it.
        DataError: no message is the assistant's.
    """
    return encode_pieces(tokenizer, [conversation_samples(tokenizer, messages)[0]])[0]


def encode_alpaca(
    tokenizer: Tokenizer, instruction: str, input: str, output: str, template: TemplateName | None = None
) -> Encoded:
    """An instruction and its answer, which alone is learnt.

    ``template``: ``chat`` is the tokenizer's chat template, ``alpaca`` the prompt of Stanford Alpaca with the end token
    behind the answer; None: the former where there is one.

    Raises:
        TokenizerError: as ``encode_conversation``.
    """
    return encode_pieces(tokenizer, [alpaca_pieces(tokenizer, instruction, input, output, template)])[0]


def encode_text(tokenizer: Tokenizer, text: str, append_eos: bool = True) -> list[int]:
    """A document: bos where this tokenizer adds it, the text, and the end token once if ``append_eos``.

    Raises:
        TokenizerError: the text is not Unicode; or there is no end token where one is asked for.
    """
    return encode_texts(tokenizer, [text], append_eos)[0]


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], append_eos: bool = True) -> list[list[int]]:
    """``encode_text`` of several documents.

    Raises:
        TokenizerError: as ``encode_text``.
    """
    if append_eos and tokenizer.eos_id is None:
        raise TokenizerError("the tokenizer has no end token", hint="name its eos_token")
    end = [tokenizer.eos_id] if append_eos and tokenizer.eos_id is not None else []
    return [_without_end(tokenizer, ids) + end for ids in tokenizer.encode_batch(texts)]


def _without_end(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Some tokenizers put the end token behind every text."""
    return ids[:-1] if tokenizer.eos_id is not None and ids[-1:] == [tokenizer.eos_id] else ids


def encode_pieces(tokenizer: Tokenizer, samples: Sequence[Sequence[Piece]]) -> list[Encoded]:
    """The samples that are made of these pieces; many at once take less time than one by one.

    Raises:
        TokenizerError: a text is not Unicode.
    """
    pieces = [piece for sample in samples for piece in sample]
    plain = iter(tokenizer.encode_batch([p.text for p in pieces if not p.opens], add_special_tokens=False))
    opening = iter(tokenizer.encode_batch([p.text for p in pieces if p.opens]))
    encoded = []
    for sample in samples:
        tokens: list[int] = []
        labels: list[int] = []
        for piece in sample:
            ids = _without_end(tokenizer, next(opening)) if piece.opens else next(plain)
            if piece.closes and tokenizer.eos_id is not None:
                ids.append(tokenizer.eos_id)
            tokens += ids
            labels += ids if piece.learnt else [IGNORED] * len(ids)
        encoded.append(Encoded(tokens, labels))
    return encoded


def conversation_samples(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[list[Piece]]:
    """A conversation as samples in which every turn of the assistant is learnt once, the last turn's sample first.

    That is one sample, but with templates that write an earlier turn in another way than they ask for it: there, such a
    turn is the last one of a sample of its own.

    Raises:
        TokenizerError: as ``encode_conversation``.
        DataError: no message is the assistant's.
    """
    turns = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
    if not turns:
        message = "no message has the role 'assistant', so there is nothing to learn"
        raise DataError(message, hint="leave such conversations out: --skip_bad N")
    if tokenizer.chat_template is not None and _GENERATION_TAG.search(tokenizer.chat_template):
        return [_marked_pieces(tokenizer, messages[: turns[-1] + 1])]
    rendered = _Renderings(tokenizer, messages)
    samples = []
    while turns:
        text = rendered.answer(turns[-1])
        spans = {turn: span for turn in turns if (span := rendered.span(turn, text)) is not None}
        if turns[-1] not in spans:
            raise TokenizerError(
                "the chat template writes an answer differently from the prompt that asks for it",
                hint="use --template alpaca, or a template that marks the answers with {% generation %}",
            )
        samples.append(_cut(text, list(spans.values())))
        turns = [turn for turn in turns if turn not in spans]
    return samples


class _Renderings:
    """The beginnings of a conversation, as the template writes them: each is rendered once."""

    def __init__(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
        self._tokenizer = tokenizer
        self._messages = messages
        self._known: dict[tuple[int, bool], str] = {}

    def prompt(self, turn: int) -> str:
        return self._render(turn, True)

    def answer(self, turn: int) -> str:
        return self._render(turn + 1, False)

    def span(self, turn: int, text: str) -> tuple[int, int] | None:
        """Where a turn stands in ``text``; None where it does not stand there as it is asked for."""
        prompt, answer = self.prompt(turn), self.answer(turn)
        if text.startswith(answer) and answer.startswith(prompt):
            return len(prompt), len(answer)
        return None

    def _render(self, count: int, prompt: bool) -> str:
        if (count, prompt) not in self._known:
            messages = self._messages[:count]
            self._known[count, prompt] = self._tokenizer.apply_chat_template(messages, add_generation_prompt=prompt)
        return self._known[count, prompt]


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> list[Piece]:
    pieces, position = [], 0
    for begin, end in spans:
        begin = max(begin, position)
        pieces += [Piece(text[position:begin], False), Piece(text[begin:end], True)]
        position = end
    return [piece for piece in [*pieces, Piece(text[position:], False)] if piece.text]


def _marked_pieces(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[Piece]:
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=False, marked=True)
    parts = _MARKED.split(text)
    if _MARKED.findall(text) != [*MARKS] * (len(parts) // 2):
        raise DataError("the conversation holds U+FDD0 or U+FDD1, which are no characters", hint="remove them")
    return [Piece(part, number % 2 == 1) for number, part in enumerate(parts) if part]


def alpaca_pieces(
    tokenizer: Tokenizer, instruction: str, input: str, output: str, template: TemplateName | None = None
) -> list[Piece]:
    """The pieces of ``encode_alpaca``.

    Raises:
        TokenizerError: as ``encode_conversation``.
    """
    if (template or ("chat" if tokenizer.chat_template is not None else "alpaca")) == "alpaca":
        return [Piece(alpaca_prompt(instruction, input), False, opens=True), Piece(output, True, closes=True)]
    question = f"{instruction}\n{input}" if input else instruction
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": output}]
    return conversation_samples(tokenizer, messages)[0]


ABOUT_THE_CHAT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""How Vicuna's conversations begin, which MindFormers' Llama recipes use."""


def shared_prefix(ids: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens both begin with: a text and its prompt, where they are encoded as wholes."""
    return next((n for n, pair in enumerate(zip(ids, prompt, strict=False)) if pair[0] != pair[1]), len(prompt))


def alpaca_prompt(instruction: str, input: str) -> str:
    """Models tuned on Stanford Alpaca know its prompt word for word."""
    if input:
        context = ", paired with an input that provides further context"
        request = f"### Instruction:\n{instruction}\n\n### Input:\n{input}"
    else:
        context, request = "", f"### Instruction:\n{instruction}"
    return (
        f"Below is an instruction that describes a task{context}. "
        f"Write a response that appropriately completes the request.\n\n{request}\n\n### Response:\n"
    )
