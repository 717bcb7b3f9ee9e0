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
from runformer.data.conversations import (
    ABOUT_THE_CHAT,
    Encoded,
    alpaca_prompt,
    conversation_samples,
    encode_pieces,
    encode_texts,
    shared_prefix,
)
from runformer.data.formats import FORMATS, Conversation, Instruction, RecordReader, Text, behind
from runformer.data.records import Ids, Records
from runformer.data.tables.table import Lengths, require_columns
from runformer.errors import DataError, TokenizerError
from runformer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

COLUMNS = ("input_ids", "labels")
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
                raise DataError(behind(self.describe(records[0]), error), hint=error.hint) from error
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
    reader = RecordReader(FORMATS["text"], {"text": column})

    def encode(rows: Rows) -> list[Encoded]:
        contents = [reader.read(row) for row in rows]
        texts = [content.text for content in contents if isinstance(content, Text)]
        return [Encoded(ids, ids) for ids in encode_texts(tokenizer, texts)]

    return (column,), encode


def _conversations(records: Records, options: EncodeOptions, tokenizer: Tokenizer) -> tuple[tuple[str, ...], Encode]:
    usual = [name for name in ("messages", "conversations") if name in records.column_names]
    column = options.column or (usual[0] if usual else "messages")
    require_columns(records, [column])
    by_role = RecordReader(FORMATS["messages"], {"messages": column})
    by_speaker = RecordReader(FORMATS["sharegpt"], {"conversations": column})

    def messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        content = (by_speaker if _names_speakers(row[column]) else by_role).read(row)
        assert isinstance(content, Conversation)
        return content.messages

    def encode(rows: Rows) -> list[Encoded]:
        return encode_pieces(tokenizer, [conversation_samples(tokenizer, messages(row))[0] for row in rows])

    return (column,), encode


def _names_speakers(value: object) -> bool:
    """Whether messages are ShareGPT's, with ``from`` and ``value``."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and first.get("role") is None and first.get("from") is not None


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

    reader = RecordReader(FORMATS["alpaca"], {})

    def encode(rows: Rows) -> list[Encoded]:
        contents = [content for row in rows if isinstance(content := reader.read(row), Instruction)]
        requests = [alpaca_prompt(each.instruction, each.input).rstrip("\n") for each in contents]
        prompts = [f"{ABOUT_THE_CHAT} USER: {request} ASSISTANT:" for request in requests]
        wholes = [f"{prompt} {each.output}{end}" for prompt, each in zip(prompts, contents, strict=True)]
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
    same = shared_prefix(whole, prompt)
    return Encoded(opening + whole, [IGNORED] * (len(opening) + same) + whole[same:])


_FORMS: dict[str, Callable[[Records, EncodeOptions, Tokenizer], tuple[tuple[str, ...], Encode]]] = {
    "alpaca": _instructions,
    "messages": _conversations,
    "text": _texts,
}
