"""Small options that several parts of a Task are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class PluginOptions:
    """A part of a run that a plug-in makes: the name it is registered under, and the arguments that it is given."""

    kind: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TokenizerOptions:
    """Where a tokenizer lies and what the YAML says about it. All None: beside the weights."""

    directory: Path | None = None
    kind: str | None = None
    tokenizer_file: Path | None = None
    vocab_file: Path | None = None
    merges_file: Path | None = None
    special_tokens: Mapping[str, str] = field(
        default_factory=dict
    )  # "bos_token", "eos_token", "pad_token", "unk_token"
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    chat_template: str | None = None
