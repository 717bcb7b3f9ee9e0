"""``python convert_weight.py``: what MindFormers' script of that name does, by its flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from runformer.cli import convert
from runformer.cli.report import reporting_errors

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def main(argv: Sequence[str]) -> int:
    """Convert, and return the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    with reporting_errors(debug=options.debug) as outcome:
        convert.main(_arguments(options))
    return outcome.exit_code


def _arguments(options: argparse.Namespace) -> list[str]:
    """The same for ``runformer convert``."""
    words = ["--input", str(options.input_path), "--output", str(options.output_path)]
    words += ["--to", "hf" if options.reversed else "mindformers"]
    words += ["--dtype", _DTYPES.get(options.dtype, options.dtype)] if options.dtype else []
    for flag in ("config", "model_dir", "src_strategy_path_or_dir"):
        value = getattr(options, flag)
        words += [f"--{'model' if flag == 'model_dir' else flag}", str(value)] if value else []
    return [*words, *(["--allow_pickle"] if options.allow_pickle else [])]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python convert_weight.py",
        description="Convert a Hugging Face folder to MindFormers' names, or with --reversed back. "
        "python -m runformer convert does more.",
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="the family; here the weights say it themselves")
    add("--input_path", type=Path, required=True, metavar="PATH", help="a folder or a file of weights")
    add("--output_path", type=Path, required=True, metavar="PATH", help="a .ckpt or .safetensors file, or a folder")
    add("--dtype", choices=(*_DTYPES, *_DTYPES.values()), help="the type to write")
    add("--reversed", action="store_true", help="from MindFormers' names to a Hugging Face folder")
    add("--config", type=Path, metavar="YAML", help="with --reversed: a task file that describes the model")
    add("--model_dir", type=Path, metavar="DIR", help="with --reversed: a folder with config.json and tokenizer")
    add("--src_strategy_path_or_dir", type=Path, metavar="PATH", help="MindSpore's strategy files")
    add("--allow_pickle", action="store_true", help="read .bin files, tensors only")
    add("--debug", action="store_true", help="show where an error comes from")
    return parser
