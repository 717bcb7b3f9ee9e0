"""``python -m runformer preprocess``: texts, instructions and conversations → files of token ids to learn from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from runformer.cli.numbers import positive, whole
from runformer.errors import UsageError

if TYPE_CHECKING:
    from runformer.data.prepare.options import PrepareOptions


def main(argv: Sequence[str]) -> None:
    """Run the command; what it made is printed.

    Raises:
        RunformerError: the records, the tokenizer or the output file cannot be used.
    """
    parser = _parser()
    options = _options(parser.parse_args(argv))
    run(options)


def run(options: PrepareOptions) -> None:
    """Do what ``options`` say, and show how far it is.

    Raises:
        RunformerError: as ``main``.
    """
    # Imported late: a wrong command line shows at once.
    from runformer.cli.preprocess_screen import Screen
    from runformer.data.prepare.engine import prepare

    with Screen(options.show) as screen:
        report = prepare(options, screen)
    for line in report.lines(options):
        print(line)


def _options(words: argparse.Namespace) -> PrepareOptions:
    from runformer.data.prepare.options import MEBIBYTE, PrepareOptions

    return PrepareOptions(
        inputs=tuple(words.input),
        output=words.output,
        tokenizer=words.tokenizer,
        chat_template=_text(words.chat_template),
        sequence_length=words.seq_length,
        format=words.format,
        mapping=_mapping(words.map),
        stage=words.stage,
        to=words.to,
        template=words.template,
        label_column=words.columns,
        learn_all=words.learn == "all",
        pack=words.pack,
        too_long=words.too_long,
        pad_last_row=words.last_row == "pad",
        append_eod=words.append_eod,
        documents=words.documents,
        shards=words.shards,
        skip_bad=words.skip_bad,
        workers=words.workers,
        show=words.show,
        chunk_size=max(1, int(words.chunk_mb * MEBIBYTE)),
    )


def _text(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--chat_template {path} cannot be read: {error}") from error


def _mapping(words: Sequence[str]) -> dict[str, str]:
    """``instruction=question,output=answer`` as names.

    Raises:
        UsageError: a word is something else.
    """
    mapping = {}
    for word in (part for each in words for part in each.split(",")):
        name, equals, column = word.partition("=")
        if not (name and equals and column):
            hint = "write --map instruction=question,output=answer: the format's name first, then that of the column"
            raise UsageError(f"--map: {word!r} is not NAME=COLUMN", hint=hint)
        mapping[name.strip()] = column.strip()
    return mapping


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runformer preprocess",
        description="Turn texts, instructions and conversations into files of token ids to learn from: MindRecord, or "
        "Megatron's .bin and .idx. In fine-tuning the loss counts the answers, not the prompts. A run that was stopped "
        "goes on where it was when the same command is given again.",
    )
    _add_files(parser.add_argument_group("files"))
    _add_records(parser.add_argument_group("records"))
    _add_rows(parser.add_argument_group("rows"))
    _add_running(parser.add_argument_group("running"))
    return parser


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="files (JSON, JSON lines, CSV, Parquet, text; also .gz .bz2 .xz .zst), folders of them or of "
        "save_to_disk, and patterns such as 'data/*.jsonl'",
    )
    group.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the MindRecord file to make, or Megatron's prefix"
    )
    group.add_argument(
        "--tokenizer", type=Path, required=True, metavar="PATH", help="the model's folder, or a file of a vocabulary"
    )
    group.add_argument(
        "--to",
        choices=("mindrecord", "megatron"),
        default="mindrecord",
        help="megatron: OUTPUT_text_document.bin and .idx, a document a record",
    )
    group.add_argument("--shards", type=positive, default=1, metavar="N", help="MindRecord files to spread rows over")


def _add_records(group: argparse._ArgumentGroup) -> None:
    from runformer.data.formats import FormatName
    from runformer.data.prepare.options import Documents

    group.add_argument(
        "--format",
        choices=get_args(FormatName),
        help="alpaca: instruction, input, output; sharegpt: conversations of from, value; messages: of role, content; "
        "text. Default: what the columns say",
    )
    group.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="NAME=COLUMN,…",
        help="columns with other names: instruction=question,output=answer",
    )
    group.add_argument(
        "--template",
        choices=("chat", "alpaca", "vicuna"),
        help="how a record becomes a prompt: the tokenizer's chat template (default where it has one), Alpaca's or "
        "Vicuna's",
    )
    group.add_argument(
        "--chat_template", type=Path, metavar="FILE", help="a Jinja file, in place of the tokenizer's own template"
    )
    group.add_argument(
        "--documents",
        choices=get_args(Documents),
        default="blank_line",
        help="what ends a document in a text file (default: a blank line)",
    )
    group.add_argument(
        "--learn", choices=("answers", "all"), default="answers", help="what the loss counts (default: answers)"
    )


def _add_rows(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--stage",
        choices=("finetune", "pretrain"),
        help="finetune: a row a record, with labels; pretrain: all tokens in one stream, cut into rows. Default: by "
        "format",
    )
    group.add_argument(
        "--seq_length", type=positive, metavar="N", help="positions the model sees; rows have N + 1 tokens"
    )
    group.add_argument(
        "--columns",
        choices=("labels", "target_ids"),
        default="labels",
        help="labels: input_ids, labels (default); target_ids: input_ids, target_ids, attention_mask",
    )
    group.add_argument(
        "--pack", action="store_true", help="several samples in a row, and a column actual_seq_len of where they end"
    )
    group.add_argument(
        "--too_long",
        choices=("truncate", "drop", "split"),
        default="truncate",
        help="records longer than a row (default: truncate)",
    )
    group.add_argument(
        "--last_row", choices=("drop", "pad"), default="drop", help="of pretraining, if not full (default: drop)"
    )
    group.add_argument("--append_eod", action="store_true", help="megatron: the end token behind each document")


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--workers", type=positive, metavar="N", help="processes (default: one a core)")
    group.add_argument("--skip_bad", type=whole, default=0, metavar="N", help="bad records to leave out and list")
    group.add_argument(
        "--show", type=whole, default=0, metavar="N", help="print the first samples, with what is not learnt in grey"
    )
    group.add_argument(
        "--chunk_mb", type=_size, default=32.0, metavar="MB", help="input between two saved states (default: 32)"
    )


def _size(text: str) -> float:
    try:
        if 0 < (size := float(text)) < 1 << 20:
            return size
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} should be a number above 0")
