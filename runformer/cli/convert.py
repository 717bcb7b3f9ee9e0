"""``python -m runformer convert``: weights of one kind → those that others load."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from runformer.cli.numbers import positive
from runformer.config.task import LoadOptions, LoraOptions, ModelOptions

FORMS = ("hf", "mindformers", "runformer", "peft")
DTYPES = ("float32", "bfloat16", "float16")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def main(argv: Sequence[str]) -> None:
    """Run the command; what it made is printed.

    Raises:
        RunformerError: the input cannot be loaded, or the output cannot be written or computes otherwise.
    """
    options = parser().parse_args(argv)
    # Imported late: a wrong command line shows at once.
    import torch

    from runformer.checkpoint.convert import Conversion, convert
    from runformer.checkpoint.foreign.other_kinds import as_loadable

    with as_loadable(options.input, allow_pickle=options.allow_pickle) as path:
        load = LoadOptions(path, resume_name=options.name, strategy=options.src_strategy_path_or_dir)
        print(
            convert(
                Conversion(
                    load,
                    options.output,
                    options.to,
                    folder=options.model,
                    model=None if options.config is None else _model_of(options.config),
                    dtype=None if options.dtype is None else getattr(torch, options.dtype),
                    shard_bytes=options.shard_size,
                    workers=options.workers,
                    verify=not options.no_verify,
                )
            )
        )


def _model_of(config: Path) -> tuple[ModelOptions, LoraOptions | None]:
    """The model that a task file describes."""
    from runformer.config import load_task
    from runformer.models.families import resolve_options

    task = load_task(["--config", str(config), "--dry_run", "True"])
    return resolve_options(task.model), task.model.lora


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m runformer convert",
        description="Convert weights: a checkpoint of a run, a Hugging Face folder, files of MindFormers (with their "
        "strategy files, where ranks have slices), LoRA adapters of PEFT, or a GGUF file. What is written is loaded "
        "again and must compute the same.",
    )
    parser.add_argument("--input", type=Path, required=True, metavar="PATH", help="a folder or a file of weights")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="PATH", help="the folder to make; or a .safetensors or .ckpt file"
    )
    parser.add_argument(
        "--to",
        choices=FORMS,
        default="hf",
        help="hf: a Hugging Face folder, with adapters merged (default); mindformers: MindFormers' names; runformer: a "
        "checkpoint; peft: the adapters alone",
    )
    parser.add_argument("--name", metavar="NAME", help="a checkpoint in the input, such as iteration_00000120")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a folder with config.json and tokenizer")
    parser.add_argument("--config", type=Path, metavar="YAML", help="a task file that describes the model")
    parser.add_argument("--src_strategy_path_or_dir", type=Path, metavar="PATH", help="MindSpore's strategy files")
    parser.add_argument("--dtype", choices=DTYPES, help="the type to write; that of each tensor if left out")
    parser.add_argument("--shard_size", type=_size, default="5GB", metavar="SIZE", help="largest file; default 5GB")
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="files written at a time; default 1")
    parser.add_argument("--no_verify", action="store_true", help="do not compute with what was written")
    parser.add_argument(
        "--allow_pickle", action="store_true", help="read .bin, .pt and .pth files, tensors only, in a child process"
    )
    return parser


def _size(text: str) -> int:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?B?)", text.upper())
    if found is None or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} should be a size such as 5GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2] if found[2].endswith("B") or not found[2] else found[2] + "B"])
