"""Instruction records in Alpaca form (``instruction``, ``input``, ``output``) as rows of token ids with labels.

A row holds the prompt and the answer, then padding; labels are -100 wherever nothing is to be learnt: on the prompt
and on padding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runformer.data import IGNORED
from runformer.data.mindrecord import Column, MindRecordWriter
from runformer.data.mindrecord.records import Record
from runformer.errors import DataError, TokenizerError
from runformer.tokenizer import Tokenizer

TemplateName = Literal["chat", "alpaca"]
LabelColumn = Literal["labels", "target_ids"]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One record; ``where`` names its place in its file for messages."""

    instruction: str
    input: str
    output: str
    where: str


@dataclass(frozen=True, slots=True)
class PreprocessReport:
    """What became of the records. ``longest`` counts the tokens of the longest one before it was cut."""

    written: int
    cut: int
    left_out: int
    longest: int
    columns: tuple[str, ...]
    pad_token_id: int


def preprocess(
    source: Path,
    target: Path,
    tokenizer: Tokenizer,
    sequence_length: int,
    template: TemplateName | None = None,
    label_column: LabelColumn = "labels",
) -> PreprocessReport:
    """Write instruction records as a MindRecord file of int32 rows with ``sequence_length + 1`` tokens.

    Args:
        source: JSON (a list) or JSON lines.
        target: the MindRecord file to make.
        tokenizer: of the model that will learn from it.
        sequence_length: positions that the model sees. Longer records are cut; one whose prompt leaves no room
            for a token of its answer is left out.
        template: ``chat`` is the tokenizer's own chat template, ``alpaca`` the prompt of Stanford Alpaca. None: the
            former where there is one.
        label_column: ``labels`` gives the columns ``input_ids, labels``; ``target_ids`` gives
            ``input_ids, target_ids, attention_mask``.

    Raises:
        DataError: a record is not in Alpaca form, or none is left, or the file exists or cannot be written.
        TokenizerError: the tokenizer has neither padding nor an end token, or no chat template.
    """
    rows = _Rows(tokenizer, sequence_length + 1, template, label_column)
    schema = {name: Column("int32", (-1,)) for name in rows.columns}
    with MindRecordWriter(target, schema) as writer:
        encoded = (row for record in read_instructions(source) if (row := rows.encode(record)) is not None)
        while batch := list(islice(encoded, 1000)):
            writer.write(batch)
            rows.written += len(batch)
        if rows.written == 0:
            message = (
                f"nothing to write: {source} has {rows.left_out} records, and no answer fits into {sequence_length}"
            )
            raise DataError(message, hint="choose a larger --seq_length")
    return PreprocessReport(rows.written, rows.cut, rows.left_out, rows.longest, rows.columns, rows.pad_token_id)


class _Rows:
    """Turns records into rows and counts what happens to them."""

    def __init__(
        self, tokenizer: Tokenizer, length: int, template: TemplateName | None, label_column: LabelColumn
    ) -> None:
        self._tokenizer = tokenizer
        self._length = length
        self._template = _TEMPLATES[template or ("chat" if tokenizer.chat_template is not None else "alpaca")]
        self._label_column = label_column
        pad = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_id
        if pad is None:
            raise TokenizerError("the tokenizer has neither a padding nor an end token", hint="name its pad_token")
        self.pad_token_id = pad
        self.columns = ("input_ids", label_column) + (("attention_mask",) if label_column == "target_ids" else ())
        self.written = self.cut = self.left_out = self.longest = 0

    def encode(self, record: Instruction) -> Record | None:
        """The row of a record; None where its prompt takes all the room."""
        try:
            prompt, answer = self._template(self._tokenizer, record)
        except TokenizerError as error:
            raise DataError(f"{record.where}: {error.message}", hint=error.hint) from error
        size = len(prompt) + len(answer)
        self.longest = max(self.longest, size)
        if len(prompt) >= self._length:
            self.left_out += 1
            return None
        self.cut += size > self._length
        padding = max(0, self._length - size)
        row = {
            "input_ids": self._row(prompt + answer + [self.pad_token_id] * padding),
            self._label_column: self._row([IGNORED] * len(prompt) + answer + [IGNORED] * padding),
            "attention_mask": self._row([1] * size + [0] * padding),
        }
        return {name: row[name] for name in self.columns}

    def _row(self, values: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
        return np.array(values[: self._length], dtype=np.int32)


def read_instructions(path: Path) -> Iterator[Instruction]:
    """The records of a JSON list or of JSON lines (told apart by the first character), in order.

    Raises:
        DataError: the file is missing, not JSON, or a record has not the texts it should have.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.read(4096).lstrip()[:1]
            file.seek(0)
            values = _json_list(path, file.read()) if head == "[" else _json_lines(path, file)
            for where, value in values:
                yield _instruction(where, value)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", hint="check --input") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text", hint="save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _json_list(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, value in enumerate(_parse_json(text, str(path)), start=1):
        yield f"{path}: record {number}", value


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}: line {number}"
            yield where, _parse_json(line, where)


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise DataError(f"{where}: not JSON at {place}: {error.msg}", hint=_FORM) from error
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply", hint=_FORM) from error


_FORM = 'a JSON list, or a line each, of {"instruction": "…", "input": "…", "output": "…"}; "input" may be left out'


def _instruction(where: str, value: Any) -> Instruction:
    if not isinstance(value, dict):
        raise DataError(f"{where} is not an object", hint=_FORM)
    texts = {"input": "", **{name: value[name] for name in ("instruction", "input", "output") if name in value}}
    for name in ("instruction", "input", "output"):
        if name not in texts:
            raise DataError(f"{where} has no {name!r}", hint=_FORM)
        if not isinstance(texts[name], str):
            raise DataError(f"{where}: {name!r} should be a text, not {type(texts[name]).__name__}", hint=_FORM)
    return Instruction(texts["instruction"], texts["input"], texts["output"], where)


def _chat_ids(tokenizer: Tokenizer, record: Instruction) -> tuple[list[int], list[int]]:
    """Prompt and answer by the tokenizer's chat template, encoded apart as they are when the model is asked."""
    question = f"{record.instruction}\n{record.input}" if record.input else record.instruction
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    messages.append({"role": "assistant", "content": record.output})
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise TokenizerError(
            "the chat template writes an answer differently from the prompt that asks for it",
            hint="use --template alpaca",
        )
    answer = whole[len(prompt) :]
    return tokenizer.encode(prompt, add_special_tokens=False), tokenizer.encode(answer, add_special_tokens=False)


def _alpaca_ids(tokenizer: Tokenizer, record: Instruction) -> tuple[list[int], list[int]]:
    """Prompt and answer with end token. Models tuned on Stanford Alpaca know its prompt word for word."""
    if record.input:
        context = ", paired with an input that provides further context"
        request = f"### Instruction:\n{record.instruction}\n\n### Input:\n{record.input}"
    else:
        context, request = "", f"### Instruction:\n{record.instruction}"
    text = (
        f"Below is an instruction that describes a task{context}. "
        f"Write a response that appropriately completes the request.\n\n{request}\n\n### Response:\n"
    )
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    prompt = tokenizer.encode(text)
    if end and prompt[-1:] == end:  # some tokenizers put the end token behind every text
        prompt.pop()
    return prompt, tokenizer.encode(record.output, add_special_tokens=False) + end


_TEMPLATES: dict[TemplateName, Callable[[Tokenizer, Instruction], tuple[list[int], list[int]]]] = {
    "chat": _chat_ids,
    "alpaca": _alpaca_ids,
}
