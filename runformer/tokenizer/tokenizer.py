"""The tokenizer that the other rooms use: text to ids, ids to text, messages to a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
import xxhash

from runformer.errors import TokenizerError
from runformer.tokenizer.chat import render_chat
from runformer.tokenizer.stretches import cut_long
from runformer.tokenizer.words import WordTable, cuts_at_words

_LONG_TEXT = 1 << 17  # characters


class Tokenizer:
    """Text to token ids and back, whatever files it came from. Made by ``load_tokenizer``.

    Args:
        backend: encodes, decodes and adds bos and eos as the folder and the recipe say.
        special_tokens: ``bos_token``, ``eos_token``, ``pad_token``, ``unk_token``, … and their text.
        chat_template: Jinja source of the model's chat format; None: it has none.
        file: where its vocabulary came from, for messages.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str], chat_template: str | None, file: Path
    ) -> None:
        self._backend = backend
        self.file = file
        self.special_tokens = dict(special_tokens)
        self.chat_template = chat_template
        self.bos_id = self._special_id("bos_token")
        self.eos_id = self._special_id("eos_token")
        self.pad_id = self._special_id("pad_token")
        self.unk_id = self._special_id("unk_token")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of ``text``; special tokens written in it become their ids.

        ``add_special_tokens``: put bos before and eos behind, where this tokenizer adds them.

        Raises:
            TokenizerError: the text holds half of a surrogate pair, which is no character; or the tokenizer's file
                is damaged in a part that only this text needs.
        """
        try:
            with self._explaining_panics():
                return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except TypeError as error:
            raise TokenizerError(f"not valid Unicode text: {text[:80]!r}", hint="save it as UTF-8") from error

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """The token ids of each text, as ``encode`` gives them, in less time, and in less memory where texts are long.

        Raises:
            TokenizerError: as ``encode``.
        """
        encoded: list[list[int]] = []
        group: list[str] = []
        size = 0
        for text in texts:
            if len(text) > _LONG_TEXT:
                encoded += self._encode_group(group, add_special_tokens)
                encoded.append(self._encode_long(text, add_special_tokens))
                group, size = [], 0
                continue
            group.append(text)
            size += len(text)
            if size > _LONG_TEXT:
                encoded += self._encode_group(group, add_special_tokens)
                group, size = [], 0
        return encoded + self._encode_group(group, add_special_tokens)

    def _encode_group(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        if self._words is None:
            return self._encode_plain(texts, add_special_tokens)
        before, behind = self._around if add_special_tokens else ([], [])
        return [before + ids + behind if before or behind else ids for ids in self._words.encode(texts)]

    def _encode_plain(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        try:
            with self._explaining_panics():
                found = self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
                return [encoding.ids for encoding in found]
        except TypeError:
            return [self.encode(text, add_special_tokens) for text in texts]  # which says what text it is

    @cached_property
    def _words(self) -> WordTable | None:
        """For tokenizers that can be asked word by word."""
        if not cuts_at_words(self._backend):
            return None
        return WordTable(lambda words: self._encode_plain(words, False))

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens before and behind a text."""
        probe = "a"
        around, alone = self.encode(probe), self.encode(probe, add_special_tokens=False)
        before = next(n for n in range(len(around) + 1) if around[n : n + len(alone)] == alone)
        return around[:before], around[before + len(alone) :]

    def _encode_long(self, text: str, add_special_tokens: bool) -> list[int]:
        stretches = cut_long(text, _LONG_TEXT, lambda part: self.encode(part, add_special_tokens=False))
        ids: list[int] = []
        for stretch in stretches:
            ids += self.encode(stretch.text, add_special_tokens=False)[stretch.skip :]
        before, behind = self._around if add_special_tokens else ([], [])
        return before + ids + behind

    @contextmanager
    def _explaining_panics(self) -> Iterator[None]:
        """The library's panics are no Exceptions, and their class cannot be imported."""
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            hint = "copy or download it again"
            raise TokenizerError(
                f"{self.file}: damaged: the tokenizers library fails on it: {error}", hint=hint
            ) from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ``ids``; ids that the vocabulary lacks give nothing, broken UTF-8 gives U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, marked: bool = False
    ) -> str:
        """The prompt of a conversation: ``messages`` have ``role`` and ``content``.

        ``add_generation_prompt`` ends it where the assistant is to speak. Encode the result with
        ``add_special_tokens=False``: the template writes bos itself. ``marked``: with ``chat.MARKS`` around what the
        template says to be the assistant's words.

        Raises:
            TokenizerError: there is no chat template, or it refuses these messages.
        """
        if self.chat_template is None:
            raise TokenizerError(
                "this tokenizer has no chat template",
                hint="ask without --chat, or set processor.tokenizer.chat_template",
            )
        return render_chat(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.special_tokens,
            marked=marked,
        )

    @cached_property
    def vocab_size(self) -> int:
        """The largest token id plus one: what an embedding table must hold at least."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    def require_fit(self, vocab_size: int) -> None:
        """Check that a model with ``vocab_size`` tokens has all of this vocabulary.

        Tokens that were added to it later may lie beyond: whoever uses one finds out then.

        Raises:
            TokenizerError: it has not.
        """
        largest = max(self._backend.get_vocab(with_added_tokens=False).values(), default=0)
        if largest >= vocab_size:
            raise TokenizerError(
                f"the tokenizer has token ids up to {largest}, but the model's vocabulary ends at {vocab_size - 1}",
                hint="the tokenizer belongs to another model, or model.model_config.vocab_size is too small",
            )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that ids of a text hang on: what was made with an equal one need not be made again."""
        whole = repr((self._backend.to_str(), sorted(self.special_tokens.items()), self.chat_template))
        return xxhash.xxh3_128_hexdigest(whole.encode(errors="surrogatepass"))

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)
