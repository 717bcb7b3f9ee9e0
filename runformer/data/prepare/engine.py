"""Preprocessing from the files to the rows; see the package for its parts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import xxhash

from runformer.config.task import TokenizerOptions
from runformer.data.formats import COLUMN_NAMES, FORMATS, Format, Stage, detect_format
from runformer.data.prepare.blocks import Block, Position, text_blocks
from runformer.data.prepare.chunks import WorkFolder, write_file
from runformer.data.prepare.encode import BlockEncoder, Counts, EncodeOptions, Result, Samples
from runformer.data.prepare.json_list import list_blocks
from runformer.data.prepare.options import Documents, PrepareOptions
from runformer.data.prepare.outputs import columns_of, output_files, write_megatron, write_mindrecord
from runformer.data.prepare.pool import encoded_blocks
from runformer.data.prepare.records import BadRecord, records_of
from runformer.data.prepare.report import Report
from runformer.data.prepare.rows import RowCounts
from runformer.data.prepare.sources import Source, find_sources
from runformer.data.prepare.tables import Wanted, table_blocks
from runformer.data.writing import explaining_writes
from runformer.errors import DataError, RunformerError, TokenizerError, UsageError
from runformer.tokenizer import Tokenizer, load_tokenizer

_VERSION = 1  # of what chunks hold


class Watcher(Protocol):
    """Is told how far a run is."""

    def begins(self, size: int, consumed: int) -> None:
        """There are ``size`` bytes of input; the chunks of an earlier run cover the first ``consumed`` of them."""

    def encoded(self, consumed: int, counts: Counts) -> None:
        """So many bytes are read; ``counts`` are new."""

    def writes(self, done: int, total: int) -> None:
        """So many of the chunks are in the output."""

    def shows(self, samples: Samples, tokenizer: Tokenizer) -> None:
        """The first samples of the run, as many as were asked for."""

    def says(self, line: str) -> None:
        """Something that a person should know."""


@dataclass(frozen=True, slots=True)
class _MakeEncoder:
    """Makes the encoder of a worker process."""

    asked: PrepareOptions
    options: EncodeOptions

    def __call__(self) -> BlockEncoder:
        return BlockEncoder(open_tokenizer(self.asked), self.options)


def open_tokenizer(options: PrepareOptions) -> Tokenizer:
    """The tokenizer of a model's folder, or of one vocabulary file of any form that predict reads.

    Raises:
        TokenizerError: there is none, or it is damaged.
    """
    path, template = options.tokenizer, options.chat_template
    if path.is_file():
        return load_tokenizer(
            None, TokenizerOptions(vocab_file=path, merges_file=options.merges, chat_template=template)
        )
    return load_tokenizer(path, TokenizerOptions(chat_template=template))


def prepare(options: PrepareOptions, watcher: Watcher) -> Report:
    """Make what ``options`` ask for, or go on where an earlier run of the same options was stopped.

    Raises:
        DataError: a record or file cannot be used, nothing is left to write, or the output exists or cannot be written.
        TokenizerError: there is no tokenizer, or it lacks what is asked of it.
        UsageError: options do not go together.
    """
    _check_options(options)
    with WorkFolder.opened(options.work_folder) as work:
        asked = _asked(options)
        if (outcome := work.outcome()) is not None and outcome.get("asked") == asked:
            watcher.says("an earlier run had made the output; it goes to its place now")
            work.finish(options.output)
            return Report.from_json(outcome["report"])
        work.reconsider()
        try:
            report = _Run(options, work, watcher).encode_and_write()
            work.decide({"asked": asked, "report": report.as_json()})
            work.finish(options.output)
        except RunformerError:
            if work.chunks:
                watcher.says(f"what is done so far is kept in {work.path}; the same command goes on behind it")
            raise
        return report


def _asked(options: PrepareOptions) -> str:
    """What the output hangs on."""
    return repr(replace(options, workers=None, show=0, skip_bad=0, chunk_size=0))


def _check_options(options: PrepareOptions) -> None:
    if not options.output.name:
        raise UsageError(f"--output {options.output} names no file", hint="name one: --output train.mindrecord")
    for file in output_files(options):
        index = file.with_name(f"{file.name}.db")
        for path in [file, index] if options.to == "mindrecord" else [file]:
            # An earlier run that was stopped while it moved its files is finished first.
            if path.exists() and not (options.work_folder / "done.json").is_file():
                raise DataError(f"{path} exists already", hint="delete it or choose another name")
    if options.to == "mindrecord" and options.sequence_length is None:
        raise UsageError("--seq_length is missing", hint="name the positions that the model sees: --seq_length 2048")
    if options.to == "megatron" and options.stage == "finetune":
        raise UsageError("Megatron's files hold no labels, so there is no --stage finetune", hint="use --to mindrecord")
    if options.pack and (options.to == "megatron" or options.stage == "pretrain"):
        raise UsageError("--pack is for fine-tuning", hint="rows of pretraining are full without it")
    for name in options.mapping:
        if name not in COLUMN_NAMES:
            known = ", ".join(sorted(COLUMN_NAMES))
            raise UsageError(f"--map {name}=…: {name!r} is not a column of a format", hint=f"there are {known}")


class _Run:
    """One run, from the sources to the files in the work folder."""

    def __init__(self, options: PrepareOptions, work: WorkFolder, watcher: Watcher) -> None:
        self._options = options
        self._work = work
        self._watcher = watcher
        self._tokenizer = open_tokenizer(options)
        self._sources = find_sources(options.inputs, as_text=options.format == "text") * options.repeat
        self._sizes = [source.size for source in self._sources]
        self._stage: Stage = options.stage or ("pretrain" if options.to == "megatron" else "finetune")
        self._counts = Counts()
        self._bad: list[BadRecord] = []

    def encode_and_write(self) -> Report:
        vocab_size = _vocab_size(self._options.tokenizer)
        if vocab_size is not None:
            self._tokenizer.require_fit(vocab_size)
        format = self._format()
        self._stage = self._checked_stage(format)
        pad = self._pad()
        make = _MakeEncoder(self._options, self._encode_options(format, vocab_size))
        self._resume(make.options)
        self._encode(make)
        return self._write(pad)

    def _format(self) -> Format:
        """As asked for, else what the first record's columns say."""
        if self._options.format is not None:
            return FORMATS[self._options.format]
        first_bad: BadRecord | None = None
        for block in self._blocks(Position()):
            for where, record in records_of(block):
                if not isinstance(record, BadRecord):
                    try:
                        return detect_format(list(record), self._options.mapping, self._stage)
                    except DataError as error:
                        raise DataError(f"{where}: {error.message}", hint=error.hint) from error
                first_bad = first_bad or record
            if first_bad is not None:
                raise first_bad.error()
        return FORMATS["text" if self._stage == "pretrain" else "alpaca"]

    def _checked_stage(self, format: Format) -> Stage:
        if format.name == "text" and self._options.stage is None:
            if self._options.pack:
                raise UsageError("--pack is for fine-tuning", hint="rows of pretraining are full without it")
            return "pretrain"
        if format.name == "text" and self._stage == "finetune":
            hint = "use --stage pretrain, or name the columns: --map instruction=COLUMN,output=COLUMN"
            raise DataError(f"{self._sources[0].path} holds plain texts, in which no answers are marked", hint=hint)
        return self._stage

    def _pad(self) -> int | None:
        if self._options.to == "megatron":
            return self._tokenizer.pad_id
        pad = self._tokenizer.pad_id if self._tokenizer.pad_id is not None else self._tokenizer.eos_id
        if pad is None:
            raise TokenizerError("the tokenizer has neither a padding nor an end token", hint="name its pad_token")
        return pad

    def _encode_options(self, format: Format, vocab_size: int | None) -> EncodeOptions:
        options = self._options
        return EncodeOptions(
            format=format.name,
            mapping=dict(options.mapping),
            stage=self._stage,
            template=options.template,
            learn_all=options.learn_all,
            append_eos=options.append_eod if options.to == "megatron" else True,
            row_length=None if self._stage == "pretrain" else options.row_length,
            too_long=options.too_long,
            skip_bad=options.skip_bad,
            vocab_size=vocab_size,
        )

    def _resume(self, encode: EncodeOptions) -> None:
        options = replace(encode, skip_bad=0)  # neither that nor the number of workers changes a sample
        manifest = {
            "version": _VERSION,
            "options": {name: getattr(options, name) for name in EncodeOptions.__slots__},
            "documents": self._options.documents,
            "chunk_size": self._options.chunk_size,
            "tokenizer": _fingerprint(self._tokenizer),
            "sources": [[str(each.path.absolute()), each.kind, each.size, each.changed] for each in self._sources],
        }
        self._work.resume(manifest)
        if self._work.outdated:
            self._watcher.says("what an earlier run left is not used: the inputs, the tokenizer or the options changed")
        for chunk in self._work.chunks:
            self._take(Result(Samples.of([]), chunk.counts, list(chunk.bad)))
        if self._work.chunks:
            done = len(self._work.chunks)
            self._watcher.says(f"going on behind {self._counts.records} records, which {done} chunks already hold")

    def _encode(self, make: Callable[[], BlockEncoder]) -> None:
        last = self._work.chunks[-1] if self._work.chunks else None
        self._watcher.begins(sum(self._sizes), last.consumed if last else 0)
        chunk = _OpenChunk()
        shown = self._options.show if last is None else 0
        workers = self._options.workers or len(os.sched_getaffinity(0))
        blocks = self._blocks(last.end if last else Position())
        for block, result in encoded_blocks(blocks, make, workers):
            self._take(result)
            if shown and len(result.samples.lengths):
                self._watcher.shows(result.samples, self._tokenizer)
                shown = 0
            consumed = sum(self._sizes[: block.end.source]) + block.consumed
            self._watcher.encoded(consumed, result.counts)
            chunk.add(block, result, consumed)
            if chunk.size >= self._options.chunk_size:
                chunk.commit(self._work)
                chunk = _OpenChunk()
        chunk.commit(self._work)

    def _take(self, result: Result) -> None:
        allowed = self._options.skip_bad
        if len(self._bad) + len(result.bad) > allowed:
            last = result.bad[allowed - len(self._bad)]
            more = f" ({allowed} bad records before it were skipped)" if allowed else ""
            raise DataError(last.message + more, hint=last.hint)
        self._counts.add(result.counts)
        self._bad += result.bad

    def _blocks(self, start: Position) -> Iterator[Block]:
        for number in range(start.source, len(self._sources)):
            begin = start if number == start.source else Position(number)
            yield from _source_blocks(self._sources[number], begin, self._options.documents, self._wanted)

    def _wanted(self, names: Sequence[str]) -> list[str]:
        wanted = {self._options.mapping.get(name, name) for name in COLUMN_NAMES}
        return [name for name in names if name in wanted] or list(names)

    def _write(self, pad: int | None) -> Report:
        if self._counts.samples == 0:
            raise self._nothing()
        folder = self._work.out
        counts = RowCounts()
        if self._options.to == "megatron":
            write_megatron(folder / self._options.megatron_prefix.name, self._chunks(), counts)
        else:
            path = folder / self._options.output.name
            write_mindrecord(path, self._chunks(), self._options, self._stage, pad or 0, counts)
        if counts.rows == 0:
            raise self._nothing()
        bad_file = self._write_bad(folder)
        columns = () if self._options.to == "megatron" else columns_of(self._options, self._stage)
        return Report(self._counts, counts, tuple(output_files(self._options)), columns, pad, bad_file)

    def _chunks(self) -> Iterator[Samples]:
        for number, chunk in enumerate(self._work.chunks):
            self._watcher.writes(number, len(self._work.chunks))
            yield self._work.read(chunk)
        self._watcher.writes(len(self._work.chunks), len(self._work.chunks))

    def _write_bad(self, folder: Path) -> Path | None:
        name = f"{self._options.output.name}.bad.jsonl"
        if not self._bad:
            return None
        with explaining_writes(folder):
            write_file(folder / name, "".join(f"{bad.as_json()}\n" for bad in self._bad).encode())
        return self._options.output.with_name(name)

    def _nothing(self) -> DataError:
        self._work.chunks.clear()  # so that the folder goes
        inputs = ", ".join(self._options.inputs)
        counts, length = self._counts, self._options.sequence_length
        if counts.records and self._stage == "finetune":
            message = f"nothing to write: {inputs} has {counts.records} records, and no answer fits into {length}"
            return DataError(message, hint="choose a larger --seq_length")
        if counts.tokens:
            message = f"nothing to write: {inputs} has {counts.tokens} tokens, too few for a row of {length} + 1"
            return DataError(message, hint="choose a smaller --seq_length, or --last_row pad")
        return DataError(f"nothing to write: {inputs} has no record with text in it", hint="check --input")


def read_blocks(inputs: Sequence[str]) -> Iterator[Block]:
    """The blocks of some files, with all columns.

    Raises:
        DataError: one cannot be read.
    """
    for number, source in enumerate(find_sources(inputs)):
        yield from _source_blocks(source, Position(number), "line", list)


def _source_blocks(source: Source, begin: Position, documents: Documents, wanted: Wanted) -> Iterator[Block]:
    match source.kind:
        case "json_list":
            return list_blocks(source, begin)
        case "parquet" | "arrow":
            return table_blocks(source, begin, wanted)
        case _:
            return text_blocks(source, begin, documents)


class _OpenChunk:
    """The results that the next chunk is made of."""

    def __init__(self) -> None:
        self.size = 0  # bytes of input
        self._samples: list[Samples] = []
        self._counts = Counts()
        self._bad: list[BadRecord] = []
        self._end = Position()
        self._consumed = 0

    def add(self, block: Block, result: Result, consumed: int) -> None:
        self.size += len(block.data)
        self._samples.append(result.samples)
        self._counts.add(result.counts)
        self._bad += result.bad
        self._end, self._consumed = block.end, consumed

    def commit(self, work: WorkFolder) -> None:
        if self._samples:
            work.add(self._samples, self._counts, self._bad, self._end, self._consumed)


def _vocab_size(tokenizer: Path) -> int | None:
    """What the model's ``config.json`` says, where one lies there."""
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    size = config.get("vocab_size") if isinstance(config, dict) else None
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _fingerprint(tokenizer: Tokenizer) -> str:
    digest = xxhash.xxh3_128(tokenizer.file.read_bytes())
    digest.update(json.dumps([tokenizer.special_tokens, tokenizer.chat_template], sort_keys=True).encode())
    return digest.hexdigest()
