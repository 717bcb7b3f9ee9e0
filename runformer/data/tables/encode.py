"""Records of text as rows of tokens and labels: instructions, conversations, plain text.

Labels stand where their tokens do: whoever reads rows shifts both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from runformer.config.data_sources import EncodeOptions
from runformer.data import IGNORED
from runformer.data.conversations import Encoded, conversation_samples, encode_pieces, encode_texts
from runformer.data.records import Ids, Records
from runformer.data.tables.table import Lengths, require_columns
from runformer.errors import DataError, TokenizerError
from runformer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

COLUMNS = ("input_ids", "labels")
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_END = "</s>"
_AT_ONCE = 1000

Rows = Sequence[Mapping[str, Any]]


class EncodedRecords(Records):
    """Records of text as ``input_ids`` and ``labels``, made when they are read.

    They are not made beforehand: a record costs less than the step that learns from it, and nothing has to be kept, or
    to be thrown away when tokenizer or text change.

    Args:
        records: what is encoded.
        options: how.
        tokenizer: of the model.
        pad_token_id: fills short rows.

    Raises:
        DataError: a column is missing.
    """

    def __init__(self, records: Records, options: EncodeOptions, tokenizer: Tokenizer, pad_token_id: int) -> None:
        self.records = records
        self.name = records.name
        self.options = options
        self.tokenizer = tokenizer
        self._pad = pad_token_id
        self._columns, self._encode = _FORMS[options.form](records, options, tokenizer)

    @property
    def column_names(self) -> Sequence[str]:
        """Tokens and labels."""
        return COLUMNS

    def __len__(self) -> int:
        return len(self.records)

    def describe(self, record: int) -> str:
        """As the records that are encoded."""
        return self.records.describe(record)

    def read_columns(self, record: int, columns: Sequence[str]) -> dict[str, Ids]:
        """As ``Records``.

        Raises:
            DataError: the record does not hold what is encoded.
        """
        require_columns(self, columns)
        (row,) = self._encoded([record])
        values = {"input_ids": row.tokens, "labels": row.labels}
        fill = {"input_ids": self._pad, "labels": IGNORED}
        return {name: self._filled(values[name], fill[name]) for name in columns}

    def lengths(self) -> Lengths:
        """How many tokens every row has: int64, (rows,)."""
        found = [np.zeros(0, dtype=np.int64)]
        for begin in range(0, len(self), _AT_ONCE):
            rows = self._encoded(range(begin, min(begin + _AT_ONCE, len(self))))
            sizes = np.array([len(row.tokens) for row in rows], dtype=np.int64)
            found.append(np.minimum(sizes, self.options.length))
        lengths = np.concatenate(found)
        return np.full_like(lengths, self.options.length) if self.options.padding else lengths

    def _encoded(self, records: Sequence[int]) -> list[Encoded]:
        rows = [self.records.read_columns(record, self._columns) for record in records]
        try:
            return self._encode(rows)
        except (DataError, TokenizerError) as error:
            if len(rows) == 1:
                raise DataError(f"{self.describe(records[0])}: {error.message}", hint=error.hint) from error
        return [row for record in records for row in self._encoded([record])]  # of many, which one it is

    def _filled(self, values: list[int], fill: int) -> Ids:
        row = np.array(values[: self.options.length], dtype=np.int64)
        missing = self.options.length - len(row)
        if not self.options.padding or not missing:
            return row
        return np.pad(row, (missing, 0) if self.options.padding == "left" else (0, missing), constant_values=fill)


Encode = Callable[[Rows], list[Encoded]]


def _texts(records: Records, options: EncodeOptions, tokenizer: Tokenizer) -> tuple[tuple[str, ...], Encode]:
    column = options.column or "text"
    require_columns(records, [column])

    def encode(rows: Rows) -> list[Encoded]:
        return [Encoded(ids, ids) for ids in encode_texts(tokenizer, [_text(row, column) for row in rows])]

    return (column,), encode


def _conversations(records: Records, options: EncodeOptions, tokenizer: Tokenizer) -> tuple[tuple[str, ...], Encode]:
    usual = [name for name in ("messages", "conversations") if name in records.column_names]
    column = options.column or (usual[0] if usual else "messages")
    require_columns(records, [column])

    def encode(rows: Rows) -> list[Encoded]:
        return encode_pieces(tokenizer, [conversation_samples(tokenizer, _messages(row[column]))[0] for row in rows])

    return (column,), encode


def _messages(value: object) -> list[dict[str, Any]]:
    """``role`` and ``content`` of each message; ShareGPT writes ``from`` and ``value``."""
    if not isinstance(value, list | tuple) or not all(isinstance(message, Mapping) for message in value):
        raise DataError(f"a conversation is a list of messages, not {_kind(value)}", hint=_FORM)
    messages = []
    for number, message in enumerate(value):
        given = {name: item for name, item in message.items() if item is not None}
        if "from" in given and "role" not in given:
            speaker = given.pop("from")
            if speaker not in _SPEAKERS:
                raise DataError(f"message {number} is from {speaker!r}, not one of {', '.join(_SPEAKERS)}")
            given = {"role": _SPEAKERS[speaker], "content": given.pop("value", None)} | given
        if not isinstance(given.get("role"), str) or not isinstance(given.get("content"), str):
            raise DataError(f"message {number} has not the texts that it should have", hint=_FORM)
        messages.append(given)
    return messages


_FORM = 'messages are {"role": "user", "content": "…"} or {"from": "human", "value": "…"}'


def _instructions(
    records: Records,
    options: EncodeOptions,  # noqa: ARG001 - its columns have fixed names
    tokenizer: Tokenizer,
) -> tuple[tuple[str, ...], Encode]:
    columns = ("instruction", "output", *(name for name in ("input",) if name in records.column_names))
    require_columns(records, columns)
    end = _end_of_answers(tokenizer, records.name)
    opening = tokenizer.encode("")  # bos, where texts begin with it
    if opening and opening[-1] == tokenizer.eos_id:
        opening.pop()

    def encode(rows: Rows) -> list[Encoded]:
        prompts = [f"{_SYSTEM} USER: {_question(row)} ASSISTANT:" for row in rows]
        wholes = [f"{prompt} {_text(row, 'output')}{end}" for prompt, row in zip(prompts, rows, strict=True)]
        asked = tokenizer.encode_batch(prompts, add_special_tokens=False)
        told = tokenizer.encode_batch(wholes, add_special_tokens=False)
        return [_learn_answer(opening, *ids) for ids in zip(asked, told, strict=True)]

    return columns, encode


def _end_of_answers(tokenizer: Tokenizer, name: str) -> str:
    """``</s>``, as the original writes; with tokenizers that have another end token that one, or nobody would stop."""
    if len(tokenizer.encode(_END, add_special_tokens=False)) == 1:
        return _END
    end = tokenizer.special_tokens.get("eos_token")
    if end is None:
        logger.warning("%s: the tokenizer has no end token, so %s behind every answer is spelt out", name, _END)
    return _END if end is None else end


def _learn_answer(opening: list[int], prompt: list[int], whole: list[int]) -> Encoded:
    """Prompt and answer are encoded as one text, so that no border shows; learnt is what the prompt alone has not."""
    same = next((place for place, ids in enumerate(zip(prompt, whole, strict=False)) if ids[0] != ids[1]), len(prompt))
    return Encoded(opening + whole, [IGNORED] * (len(opening) + same) + whole[same:])


def _question(row: Mapping[str, Any]) -> str:
    instruction, context = _text(row, "instruction"), row.get("input")
    paired, request = "", f"### Instruction:\n{instruction}"
    if context:
        paired = ", paired with an input that provides further context"
        request += f"\n\n### Input:\n{_text(row, 'input')}"
    return (
        f"Below is an instruction that describes a task{paired}. "
        f"Write a response that appropriately completes the request.\n\n{request}\n\n### Response:"
    )


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise DataError(f"{column!r} should be a text, not {_kind(value)}")
    return value


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


_FORMS: dict[str, Callable[[Records, EncodeOptions, Tokenizer], tuple[tuple[str, ...], Encode]]] = {
    "alpaca": _instructions,
    "messages": _conversations,
    "text": _texts,
}
