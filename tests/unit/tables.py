"""Small tables on disk for the tests of what the datasets library opens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runformer.config.data_sources import EncodeOptions, HandlerOptions, MethodOptions, PackOptions, TableFiles
from runformer.config.task import TokenizerOptions
from runformer.data.records import Records
from runformer.data.tables import open_table


def json_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def of_files(format: str, *paths: Path, **changes: Any) -> TableFiles:
    return TableFiles(**{"paths": paths, "format": format, "files": {"train": paths}, **changes})


def opened(source: TableFiles, seed: int = 0, pad_token_id: int | None = None) -> Records:
    return open_table(source, seed=seed, pad_token_id=pad_token_id, section="train_dataset")


def method(name: str, **arguments: Any) -> MethodOptions:
    return MethodOptions(name, arguments)


def encode(form: Any, tokenizer: Path, length: int = 200, **changes: Any) -> EncodeOptions:
    return EncodeOptions(form, TokenizerOptions(directory=tokenizer), length, **{"padding": None, **changes})


def pack(length: int, strategy: Any = "pack") -> PackOptions:
    return PackOptions(length, strategy)


def with_handlers(source: TableFiles, *handlers: HandlerOptions) -> TableFiles:
    return replace(source, handlers=handlers)
