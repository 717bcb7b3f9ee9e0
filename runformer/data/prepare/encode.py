"""A block → token ids with labels: what a worker does, in arrays that travel cheaply between processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runformer.data import IGNORED
from runformer.data.conversations import (
    Encoded,
    Piece,
    alpaca_pieces,
    conversation_samples,
    encode_pieces,
    encode_texts,
)
from runformer.data.formats import (
    FORMATS,
    Columns,
    Conversation,
    FormatName,
    Instruction,
    RecordReader,
    Stage,
    Text,
    behind,
)
from runformer.data.prepare.blocks import Block
from runformer.data.prepare.options import Template, TooLong
from runformer.data.prepare.records import BadRecord, records_of
from runformer.data.prepare.vicuna import vicuna_sample
from runformer.errors import DataError, TokenizerError
from runformer.tokenizer import Tokenizer

Tokens = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What a worker is told. ``row_length`` None: nothing is cut. ``vocab_size``: ids are less, where it is known."""

    format: FormatName
    mapping: Mapping[str, str]
    stage: Stage
    template: Template | None
    learn_all: bool
    append_eos: bool
    row_length: int | None
    too_long: TooLong
    skip_bad: int
    vocab_size: int | None


@dataclass
class Counts:
    """What became of records. ``longest`` counts the tokens of the longest sample before it was cut."""

    records: int = 0
    samples: int = 0
    tokens: int = 0
    learnt: int = 0
    cut: int = 0
    dropped: int = 0
    split: int = 0
    left_out: int = 0
    empty: int = 0
    bad: int = 0
    longest: int = 0

    def add(self, other: Counts) -> None:
        """Count ``other`` as well."""
        for each in fields(self):
            if each.name != "longest":
                setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        self.longest = max(self.longest, other.longest)

    def as_json(self) -> dict[str, int]:
        """The numbers by their names."""
        return asdict(self)


@dataclass
class Samples:
    """Samples one behind the other.

    Attributes:
        tokens: int32, all tokens.
        learnt: uint8, 1 where a token is learnt; as long as ``tokens``.
        lengths: int32, the tokens of each sample.
    """

    tokens: Tokens
    learnt: NDArray[np.uint8]
    lengths: Tokens

    @classmethod
    def of(cls, samples: Sequence[Encoded]) -> Samples:
        """The same samples in arrays."""
        return cls(
            np.array([token for sample in samples for token in sample.tokens], dtype=np.int32),
            np.array([label != IGNORED for sample in samples for label in sample.labels], dtype=np.uint8),
            np.array([len(sample.tokens) for sample in samples], dtype=np.int32),
        )

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """Several, one behind the other."""
        empty = cls.of([])
        return cls(
            np.concatenate([empty.tokens, *(part.tokens for part in parts)]),
            np.concatenate([empty.learnt, *(part.learnt for part in parts)]),
            np.concatenate([empty.lengths, *(part.lengths for part in parts)]),
        )


@dataclass
class Result:
    """What a worker hands back: at most one bad record more than may be skipped."""

    samples: Samples
    counts: Counts
    bad: list[BadRecord] = field(default_factory=list)


class BlockEncoder:
    """Encodes blocks.

    Args:
        tokenizer: of the model that will learn from them.
        options: what to do with the records.
    """

    def __init__(self, tokenizer: Tokenizer, options: EncodeOptions) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._reader = RecordReader(FORMATS[options.format], options.mapping)

    def encode(self, block: Block) -> Result:
        """The samples of a block."""
        result = Result(Samples.of([]), Counts())
        pending: list[tuple[str, list[list[Piece]] | Encoded | str]] = []
        for where, record in records_of(block):
            result.counts.records += 1
            try:
                pending.append((where, self._prepared(record)))
            except (DataError, TokenizerError) as error:
                bad = record if isinstance(record, BadRecord) else _bad(where, error)
                result.bad.append(bad)
                if len(result.bad) > self._options.skip_bad:
                    break
        result.counts.bad = len(result.bad)
        self._add_samples(result, pending)
        return result

    def _prepared(self, record: Columns | BadRecord) -> list[list[Piece]] | Encoded | str:
        if isinstance(record, BadRecord):
            raise record.error()
        content = self._reader.read(record)
        match content:
            case Text():
                return content.text
            case Instruction():
                return self._instruction(content)
            case Conversation():
                return self._conversation(content.messages)

    def _instruction(self, content: Instruction) -> list[list[Piece]] | Encoded:
        texts = content.instruction, content.input, content.output
        if self._options.template == "vicuna":
            question = "\n".join(text for text in texts[:2] if text)
            return self._conversation(
                [{"role": "user", "content": question}, {"role": "assistant", "content": texts[2]}]
            )
        return [alpaca_pieces(self._tokenizer, *texts, self._options.template)]

    def _conversation(self, messages: list[dict[str, Any]]) -> list[list[Piece]] | Encoded:
        if self._options.template == "vicuna":
            return vicuna_sample(self._tokenizer, messages)
        samples = conversation_samples(self._tokenizer, messages)
        # All text is in the sample of the whole conversation; the others are there for their answers.
        return samples[:1] if self._options.learn_all or self._options.stage == "pretrain" else samples

    def _add_samples(self, result: Result, pending: Sequence[tuple[str, list[list[Piece]] | Encoded | str]]) -> None:
        texts = [content for _, content in pending if isinstance(content, str)]
        pieces = [sample for _, content in pending if isinstance(content, list) for sample in content]
        documents = iter(encode_texts(self._tokenizer, texts, self._options.append_eos) if texts else [])
        encoded = iter(encode_pieces(self._tokenizer, pieces))
        samples: list[Encoded] = []
        for where, content in pending:
            if isinstance(content, str):
                found = [Encoded(ids, ids)] if (ids := next(documents)) and content.strip() else []
            else:
                found = [content] if isinstance(content, Encoded) else [next(encoded) for _ in content]
            result.counts.empty += not found
            for sample in found:
                samples += self._fitted(self._checked(sample, where), result.counts)
        result.samples = Samples.of(samples)
        result.counts.samples = len(samples)
        result.counts.tokens = len(result.samples.tokens)
        result.counts.learnt = int(result.samples.learnt.sum())

    def _checked(self, sample: Encoded, where: str) -> Encoded:
        limit = self._options.vocab_size
        if limit is not None and sample.tokens and (largest := max(sample.tokens)) >= limit:
            message = f"{where} has token id {largest}, but the model's config.json says that there are {limit} tokens"
            raise TokenizerError(message, hint="the tokenizer belongs to another model")
        return sample

    def _fitted(self, sample: Encoded, counts: Counts) -> list[Encoded]:
        """A sample as it goes into rows: whole, in parts, or not at all."""
        counts.longest = max(counts.longest, len(sample.tokens))
        if self._options.stage == "pretrain":
            return [self._document(sample)]
        if self._options.learn_all:
            sample = Encoded(sample.tokens, sample.tokens)
        room = self._options.row_length
        if room is None or len(sample.tokens) <= room:
            counts.empty += not _teaches(sample)
            return [sample] if _teaches(sample) else []
        if self._options.too_long == "drop":
            counts.dropped += 1
            return []
        # Parts of a split overlap by a token, since a row's first one is never predicted.
        step = room - 1 if self._options.too_long == "split" else len(sample.tokens)
        begins = range(0, len(sample.tokens) - 1, step)
        parts = [Encoded(sample.tokens[n : n + room], sample.labels[n : n + room]) for n in begins]
        parts = [part for part in parts if _teaches(part)]
        if not parts:
            counts.left_out += 1
        elif self._options.too_long == "split":
            counts.split += 1
        else:
            counts.cut += 1
        return parts

    def _document(self, sample: Encoded) -> Encoded:
        end = self._tokenizer.eos_id
        if self._options.append_eos and end is not None and sample.tokens[-1:] != [end]:
            return Encoded([*sample.tokens, end], [*sample.tokens, end])
        return Encoded(sample.tokens, sample.tokens)


def _teaches(sample: Encoded) -> bool:
    """Whether anything is learnt: a row's first token is never predicted."""
    return any(label != IGNORED for label in sample.labels[1:])


def _bad(where: str, error: DataError | TokenizerError) -> BadRecord:
    return BadRecord(where, behind("", error), error.hint or "")
