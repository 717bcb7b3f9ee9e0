"""``python -m runformer data show|stats|index``: looking into dataset files, and mending their indexes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from runformer.cli.numbers import positive, whole
from runformer.errors import DataError, RunformerError


def main(argv: Sequence[str]) -> int:
    """Run one of the commands on each file; the exit code: 1 where a file cannot be read, after the other files.

    Raises:
        RunformerError: the only file, or the tokenizer, cannot be read.
    """
    options = _parser().parse_args(argv)
    run = {"show": _show, "stats": _stats, "index": _index}[options.command]
    failed = 0
    for file in options.files:
        try:
            run(options, file)
        except RunformerError as error:
            if len(options.files) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            failed = error.exit_code
    return failed


def _show(options: argparse.Namespace, file: Path) -> None:
    # Imported late: a wrong command line shows at once.
    from rich.console import Console

    from runformer.data.inspect.show import Choice, show
    from runformer.tokenizer import load_tokenizer

    tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer)
    limit = None if options.all else options.tokens
    choice = Choice(options.first, options.count, limit, options.columns, tokenizer)
    show(file, choice, Console(highlight=False, markup=False, emoji=False))


def _stats(options: argparse.Namespace, file: Path) -> None:
    from runformer.data.inspect.figures import count
    from runformer.data.inspect.files import open_dataset, token_columns
    from runformer.data.inspect.report import as_json, as_text
    from runformer.observe.counting import counting

    records = open_dataset(file)
    columns = token_columns(records, options.columns)
    if columns is None:
        names = ", ".join(records.column_names)
        raise DataError(f"{file} has no column of token ids; it has {names}", hint="--columns names one")
    with counting(len(records), file.name) as advance:
        figures = count(
            records, columns, sequence_length=options.seq_length, pad_token_id=options.pad_token_id, advance=advance
        )
    if options.json:
        print(json.dumps({"file": str(file), "columns": columns.names, **as_json(figures)}))
    else:
        print(f"{file}: {', '.join(columns.names)}\n{as_text(figures)}")


def _index(options: argparse.Namespace, file: Path) -> None:  # noqa: ARG001 - all commands are called alike
    from runformer.data.inspect.reindex import reindex

    for done in reindex(file):
        print(done, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runformer data",
        description="Look into dataset files, and mend the indexes of MindRecord files.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    texts = {
        "show": "what a dataset holds: columns, sizes and some records, with a tokenizer as text",
        "stats": "how many tokens, how long records are, how much is padding, and what packing would save",
        "index": "write the .db beside a MindRecord file where it is missing or disagrees with the data",
    }
    added = {name: commands.add_parser(name, help=text, description=text) for name, text in texts.items()}
    for name, command in added.items():
        what = "a MindRecord file or a folder of them" + ("" if name == "index" else "; or a Megatron prefix")
        command.add_argument("files", nargs="+", type=Path, metavar="FILE", help=what)
    for name in ("show", "stats"):
        text = "the column of tokens, and of labels (default: the usual names)"
        added[name].add_argument("--columns", nargs="+", default=(), metavar="NAME", help=text)
    _add_show(added["show"])
    _add_stats(added["stats"])
    return parser


def _add_show(show: argparse.ArgumentParser) -> None:
    show.add_argument("--from", dest="first", type=whole, default=0, metavar="N", help="the first record, from 0")
    show.add_argument("--count", type=whole, default=3, metavar="N", help="how many records (default 3)")
    show.add_argument("--tokens", type=whole, default=400, metavar="N", help="at most so many of each (default 400)")
    show.add_argument("--all", action="store_true", help="all tokens")
    show.add_argument("--tokenizer", type=Path, metavar="DIR", help="the model's folder: shows text instead of ids")


def _add_stats(stats: argparse.ArgumentParser) -> None:
    text = "positions the model sees; rows have N + 1 tokens (default: as the records are)"
    stats.add_argument("--seq_length", type=positive, metavar="N", help=text)
    stats.add_argument("--pad_token_id", type=whole, metavar="ID", help="what is padding (default: guessed)")
    stats.add_argument("--json", action="store_true", help="one JSON object a file")
