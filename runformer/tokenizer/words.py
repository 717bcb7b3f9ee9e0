"""Texts word by word: a word that was seen before costs a look into a table.

Byte-level vocabularies of the GPT-2, Qwen2 and Llama 3 families cut a text by a pattern and encode each part by itself.
All of these patterns cut before a space that stands between a visible character and a letter; so the ids of a text are
those of its words, each with the space before it, one after the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from runformer.tokenizer.byte_level import LLAMA3, QWEN

_WORDS = re.compile(r"(?<=\S)(?= [A-Za-z])")
_CAPACITY = 1 << 18  # words
_LONGEST = 64  # characters of a word that is kept
_PATTERNS = (QWEN.pattern, LLAMA3.pattern)

EncodeBatch = Callable[[list[str]], list[list[int]]]


class WordTable:
    """Encodes texts without special tokens around them.

    Args:
        encode_batch: encodes words that are not in the table.
    """

    def __init__(self, encode_batch: EncodeBatch) -> None:
        self._encode_batch = encode_batch
        self._known: dict[str, bytes] = {}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        split = [_WORDS.split(text) for text in texts]
        known = self._known
        new = list(set[str]().union(*split).difference(known))
        known.update(zip(new, map(_to_bytes, self._encode_batch(new)), strict=True))
        look = known.__getitem__
        encoded: list[list[int]] = [np.frombuffer(b"".join(map(look, words)), np.uint32).tolist() for words in split]
        full = len(known) > _CAPACITY
        for word in new:
            if full or len(word) > _LONGEST:
                del known[word]
        return encoded


def _to_bytes(ids: list[int]) -> bytes:
    array: NDArray[np.uint32] = np.array(ids, dtype=np.uint32)
    return array.tobytes()


def cuts_at_words(backend: tokenizers.Tokenizer) -> bool:
    """Whether this is one of the tokenizers whose ids of a text are those of its words."""
    content = json.loads(backend.to_str())
    model = content["model"]
    return (
        model["type"] == "BPE"
        and not model.get("dropout")
        and (content["normalizer"] is None or content["normalizer"] == {"type": "NFC"})
        and _cuts(content["pre_tokenizer"])
        and not any(_reaches_beyond(token) for token in content["added_tokens"])
    )


def _cuts(step: Any) -> bool:
    steps = step["pretokenizers"] if isinstance(step, dict) and step["type"] == "Sequence" else [step]
    *before, last = steps or [None]
    if not isinstance(last, dict) or last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    splits = [each for each in before if each["type"] == "Split"]
    digits = [each for each in before if each["type"] == "Digits"]  # cut even more
    if len(splits) + len(digits) != len(before) or any(not _is_known(split) for split in splits):
        return False
    return bool(last.get("use_regex", True)) or bool(splits)


def _is_known(split: Any) -> bool:
    return split["pattern"].get("Regex") in _PATTERNS and split["behavior"] == "Isolated" and not split["invert"]


def _reaches_beyond(token: Any) -> bool:
    """Whether an added token takes the spaces around it, or would be torn by a cut."""
    return token["lstrip"] or token["rstrip"] or token["single_word"] or " " in token["content"]
