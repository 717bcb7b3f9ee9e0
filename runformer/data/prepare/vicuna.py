"""Conversations in Vicuna's form, which MindFormers' Llama recipes use: a sentence about the talk, then its turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runformer.data import IGNORED
from runformer.data.conversations import ABOUT_THE_CHAT, Encoded, shared_prefix
from runformer.errors import DataError
from runformer.tokenizer import Tokenizer


def vicuna_sample(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> Encoded:
    """A conversation as ``… USER: question ASSISTANT: answer</s>``; the answers and their end tokens are learnt.

    A round is encoded as a whole, and what it shares with its prompt is not learnt.

    Raises:
        DataError: turns of user and assistant do not alternate, or there is none.
    """
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    tokens: list[int] = []
    labels: list[int] = []
    for number, (question, answer) in enumerate(_rounds(messages)):
        prompt = f"{f'{ABOUT_THE_CHAT} ' if number == 0 else ''}USER: {question} ASSISTANT:"
        ids = tokenizer.encode(f"{prompt} {answer}", add_special_tokens=number == 0)
        if end and ids[-1:] == end:
            ids.pop()
        shared = shared_prefix(ids, tokenizer.encode(prompt, add_special_tokens=number == 0))
        tokens += ids + end
        labels += [IGNORED] * shared + ids[shared:] + end
    return Encoded(tokens, labels)


def _rounds(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    turns = [message for message in messages if message["role"] != "system"]
    if turns and turns[0]["role"] != "user":
        turns = turns[1:]
    turns = turns[: len(turns) // 2 * 2]
    if not turns or any(turn["role"] != ("user", "assistant")[place % 2] for place, turn in enumerate(turns)):
        raise DataError("the turns of user and assistant do not alternate", hint="Vicuna's form has no other talks")
    texts = [turn["content"] for turn in turns]
    return list(zip(texts[::2], texts[1::2], strict=True))
