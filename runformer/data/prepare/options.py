"""What is asked of preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from runformer.data.formats import FormatName, Stage

Target = Literal["mindrecord", "megatron"]
Template = Literal["chat", "alpaca", "vicuna"]
LabelColumn = Literal["labels", "target_ids"]
TooLong = Literal["truncate", "drop", "split"]
Documents = Literal["blank_line", "line", "file"]

MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """The options of one run.

    Args:
        inputs: files, folders and glob patterns.
        output: the MindRecord file, or what the names of Megatron's two files begin with.
        tokenizer: a model's folder, or a file of a vocabulary.
        merges: what goes with a vocabulary file ``vocab.json``; None: ``merges.txt`` beside it.
        chat_template: in place of the tokenizer's own.
        sequence_length: positions that the model sees; rows have one token more. Megatron's files need none.
        format: of the records; None: seen from their columns.
        mapping: name of a format's column → name of the column in the files.
        stage: None: ``finetune`` where the format has answers, else ``pretrain``.
        template: how instructions and conversations become text; None: the tokenizer's chat template where it has one.
        label_column: ``target_ids`` brings an ``attention_mask`` along.
        learn_all: labels are all tokens, and not those of the answers alone.
        pack: rows hold several samples, and a column ``actual_seq_len``.
        pad_last_row: of pretraining: fill up the last row, instead of leaving it out.
        append_eod: the end token stands behind each of Megatron's documents.
        document_name: of Megatron's files: ``OUTPUT_NAME_document``.
        documents: what separates the documents of a plain text file.
        shards: MindRecord files to make.
        repeat: times that the input is read.
        max_rows: rows that are written at most.
        skip_bad: bad records to leave out before the run fails.
        workers: processes; None: one a core.
        show: samples to show.
        chunk_size: bytes of input between two states on disk.
    """

    inputs: tuple[str, ...]
    output: Path
    tokenizer: Path
    merges: Path | None = None
    chat_template: str | None = None
    sequence_length: int | None = None
    format: FormatName | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    stage: Stage | None = None
    to: Target = "mindrecord"
    template: Template | None = None
    label_column: LabelColumn = "labels"
    learn_all: bool = False
    pack: bool = False
    too_long: TooLong = "truncate"
    pad_last_row: bool = False
    append_eod: bool = False
    document_name: str = "text"
    documents: Documents = "blank_line"
    shards: int = 1
    repeat: int = 1
    max_rows: int | None = None
    skip_bad: int = 0
    workers: int | None = None
    show: int = 0
    chunk_size: int = 32 * MEBIBYTE

    @property
    def megatron_prefix(self) -> Path:
        """What the names of Megatron's files begin with: its tools name the column as well."""
        return self.output.with_name(f"{self.output.name}_{self.document_name}_document")

    @property
    def work_folder(self) -> Path:
        """Where the state of the run is kept until the output is whole."""
        target = self.megatron_prefix if self.to == "megatron" else self.output
        return target.with_name(f"{target.name}.work")

    @property
    def row_length(self) -> int:
        """Tokens of a row."""
        return (self.sequence_length or 0) + 1
