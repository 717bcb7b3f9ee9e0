"""What generation gives to people: lines on the console, and the original's result file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from runformer.errors import PredictError


def format_results(batches: Sequence[Sequence[str]]) -> str:
    """The original's form: the Python ``repr`` of one dict a batch, prompts included in its texts."""
    return repr([{"text_generation_text": list(texts)} for texts in batches])


def write_results(path: Path, batches: Sequence[Sequence[str]]) -> None:
    """Write the result file, whole or not at all.

    Raises:
        PredictError: it cannot be written; a file that stood there still stands.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A lone surrogate, which a damaged tokenizer can give, is no reason to lose all texts.
        partial.write_text(format_results(batches), encoding="utf-8", errors="backslashreplace")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        message = f"the result file {path} cannot be written: {error.strerror}"
        raise PredictError(message, hint="run from a folder where you may write, or set save_file") from None


def format_answer(number: int, prompt: str, answer: str) -> str:
    """One prompt and its answer, to be read on a console."""
    return f"\n[{number}] {prompt}\n→ {answer.strip()}"
