"""``python -m runformer preprocess``: instruction records in Alpaca form → a MindRecord file to fine-tune on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> None:
    """Run the command; what it made is printed.

    Raises:
        RunformerError: the records, the tokenizer or the output file cannot be used.
    """
    options = _parser().parse_args(argv)
    # Imported late: a wrong command line shows at once.
    from runformer.data.alpaca import preprocess
    from runformer.tokenizer import load_tokenizer

    report = preprocess(
        options.input,
        options.output,
        load_tokenizer(options.tokenizer),
        options.seq_length,
        options.template,
        options.columns,
    )
    columns = ", ".join(report.columns)
    print(f"wrote {report.written} records of {options.seq_length} + 1 tokens to {options.output}: {columns}")
    print(f"the longest has {report.longest} tokens; shorter ones are padded with token {report.pad_token_id}")
    if report.cut:
        print(f"longer records, cut to this length: {report.cut}")
    if report.left_out:
        print(f"records left out, since their prompt leaves no room for the answer: {report.left_out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runformer preprocess",
        description="Turn instruction records (Alpaca form) into a MindRecord file to fine-tune on. "
        "The loss counts the answers, not the prompts.",
    )
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="the records, .json or .jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the MindRecord file to make")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="the model's folder")
    parser.add_argument(
        "--seq_length",
        type=_positive,
        required=True,
        metavar="N",
        help="positions the model sees; rows have N + 1 tokens",
    )
    parser.add_argument(
        "--template",
        choices=("chat", "alpaca"),
        help="how a record becomes a prompt: the tokenizer's chat template (default where it has one) or Alpaca's",
    )
    parser.add_argument(
        "--columns",
        choices=("labels", "target_ids"),
        default="labels",
        help="labels: input_ids, labels (default); target_ids: input_ids, target_ids, attention_mask",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from 1 on")
    return int(text)
