"""Which columns hold what: records of the known formats → texts, instructions, conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from runformer.errors import DataError, RunformerError

FormatName = Literal["alpaca", "sharegpt", "messages", "text"]
Stage = Literal["finetune", "pretrain"]
Columns = Mapping[str, Any]

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""ShareGPT's names of who speaks → those of chat templates."""


@dataclass(frozen=True, slots=True)
class Text:
    """A document."""

    text: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """A request and its answer."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages with ``role`` and ``content``."""

    messages: list[dict[str, Any]]


Content = Text | Instruction | Conversation


@dataclass(frozen=True, slots=True)
class Format:
    """The columns of a format; ``parts`` are the names within each message."""

    name: FormatName
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are read."""
        return self.required + self.optional


FORMATS: dict[FormatName, Format] = {
    "messages": Format("messages", ("messages",), parts=("role", "content")),
    "sharegpt": Format("sharegpt", ("conversations",), ("system",), ("from", "value")),
    "alpaca": Format("alpaca", ("instruction", "output"), ("input",)),
    "text": Format("text", ("text",)),
}
COLUMN_NAMES = frozenset(name for each in FORMATS.values() for name in (*each.columns, *each.parts))

_EXAMPLES: dict[FormatName, str] = {
    "messages": '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
    "sharegpt": '{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}',
    "alpaca": '{"instruction": "…", "input": "…", "output": "…"}; "input" may be left out',
    "text": '{"text": "…"}',
}


def detect_format(columns: Collection[str], mapping: Mapping[str, str], stage: Stage | None) -> Format:
    """The format that these columns have; for pretraining a column of text comes first.

    Where none has all its columns, it is the one that comes nearest, so that what is missing can be named.

    Raises:
        DataError: no format comes near.
    """
    names = ["text", "messages", "sharegpt", "alpaca"] if stage == "pretrain" else list(FORMATS)
    formats = [FORMATS[name] for name in names if name in FORMATS]
    for each in formats:
        if all(mapping.get(name, name) in columns for name in each.required):
            return each
    for each in formats:
        if any(mapping.get(name, name) in columns for name in each.columns):
            return each
    listed = "; ".join(f"{each.name}: {', '.join(each.required)}" for each in formats)
    shown = ", ".join(columns) or "none"
    raise DataError(f"the columns ({shown}) are of no known format ({listed})", hint=_map_hint(columns))


def _map_hint(columns: Collection[str]) -> str:
    for name in sorted(COLUMN_NAMES):
        if nearest := get_close_matches(name, list(columns), n=1, cutoff=0.75):
            return f"did you mean {name!r}? --map {name}={nearest[0]}"
    example = next(iter(columns), "COLUMN")
    return f"name the columns: --map instruction={example},output=COLUMN, or --map text={example}"


class RecordReader:
    """Takes what a format says out of records.

    Args:
        format: of the records.
        mapping: name in the format → name in the records.
    """

    def __init__(self, format: Format, mapping: Mapping[str, str]) -> None:
        self.format = format
        self._mapping = mapping
        readers: dict[FormatName, Callable[[Columns], Content]] = {
            "messages": self._messages,
            "sharegpt": self._sharegpt,
            "alpaca": self._alpaca,
            "text": lambda record: Text(self._text(record, "text")),
        }
        self._read = readers[format.name]

    def read(self, record: Columns) -> Content:
        """The content of a record.

        Raises:
            DataError: a column is missing or holds something else; the message is to follow the record's place.
        """
        return self._read(record)

    def _name(self, column: str) -> str:
        return self._mapping.get(column, column)

    def _alpaca(self, record: Columns) -> Instruction:
        instruction, output = self._text(record, "instruction"), self._text(record, "output")
        return Instruction(instruction, self._text(record, "input", optional=True), output)

    def _text(self, record: Columns, column: str, optional: bool = False) -> str:
        value = self._value(record, column, optional)
        if value is None and optional:
            return ""
        return self._checked(value, repr(self._name(column)))

    def _value(self, record: Columns, column: str, optional: bool = False) -> Any:
        name = self._name(column)
        if name in record or optional:
            return record.get(name)
        nearest = get_close_matches(name, list(record), n=1, cutoff=0.6)
        hint = f"did you mean --map {column}={nearest[0]}? " if nearest else ""
        raise DataError(f" has no {name!r}", hint=hint + self._form())

    def _checked(self, value: Any, what: str) -> str:
        if not isinstance(value, str):
            raise DataError(f": {what} should be a text, not {_kind(value)}", hint=self._form())
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                unit = ord(value[error.start])
                message = (
                    f": not valid Unicode: {what} has half of a surrogate pair (U+{unit:04X}) at {error.start + 1}"
                )
                raise DataError(message, hint="mend the program that wrote the escapes \\ud800 to \\udfff") from error
        return value

    def _form(self) -> str:
        return f"expected is {_EXAMPLES[self.format.name]}"

    def _messages(self, record: Columns) -> Conversation:
        return Conversation([self._message(number, each) for number, each in self._turns(record, "messages")])

    def _message(self, number: int, value: Mapping[str, Any]) -> dict[str, Any]:
        role, content = self._name("role"), self._name("content")
        # Tables give every message all columns that any message has.
        message = {name: each for name, each in value.items() if each is not None and name not in (role, content)}
        if message:  # what else a template may write, such as calls of tools
            self._checked(json.dumps(message, ensure_ascii=False, default=str), f"message {number}")
        message["role"] = self._checked(value.get(role), f"message {number}: {role!r}")
        text = value.get(content)
        if text is None and message.get("tool_calls"):
            text = ""
        if isinstance(text, list):
            text = self._joined_parts(text, number)
        message["content"] = self._checked(text, f"message {number}: {content!r}")
        return message

    def _joined_parts(self, parts: Sequence[Any], number: int) -> str:
        """The text of a message whose content is ``[{"type": "text", "text": …}, …]``."""
        for part in parts:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise DataError(f": message {number} holds something else than text", hint="only text can be learnt")
        return "".join(part["text"] for part in parts)

    def _sharegpt(self, record: Columns) -> Conversation:
        system = self._text(record, "system", optional=True)
        messages = [self._spoken(number, each) for number, each in self._turns(record, "conversations")]
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        return Conversation(messages)

    def _spoken(self, number: int, value: Mapping[str, Any]) -> dict[str, Any]:
        speaker, text = self._name("from"), self._name("value")
        who = self._checked(value.get(speaker), f"message {number}: {speaker!r}")
        if (role := ROLES.get(who.lower())) is None:
            nearest = get_close_matches(who.lower(), ROLES, n=1, cutoff=0.0)[0]
            message = f": message {number}: {speaker!r} is {who[:40]!r}, which is none of {', '.join(ROLES)}"
            raise DataError(message, hint=f"did you mean {nearest!r}?")
        return {"role": role, "content": self._checked(value.get(text), f"message {number}: {text!r}")}

    def _turns(self, record: Columns, column: str) -> list[tuple[int, Mapping[str, Any]]]:
        value, name = self._value(record, column), self._name(column)
        if isinstance(value, str):  # CSV has nothing but text
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise DataError(f": {name!r} should be a list of messages, not a text", hint=self._form()) from error
        if not isinstance(value, list):
            raise DataError(f": {name!r} should be a list of messages, not {_kind(value)}", hint=self._form())
        if not value:
            raise DataError(f": {name!r} holds no message", hint=self._form())
        for number, each in enumerate(value, start=1):
            if not isinstance(each, Mapping):
                raise DataError(f": message {number} of {name!r} is not an object", hint=self._form())
        return list(enumerate(value, start=1))


def behind(place: str, error: RunformerError) -> str:
    """The place of a record, and what is wrong with it: what a reader says goes on behind the place."""
    goes_on = error.message.startswith((" ", ":"))
    return f"{place}{error.message}" if goes_on else f"{place}: {error.message}"


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
