"""The ``datasets`` library: imported when it is needed, kept off the network, its errors explained."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runformer.errors import DataError

INSTALL = "pip install 'runformer[data]'"
_LONGEST_SHOWN = 300


def load_library() -> Any:
    """The module ``datasets``, told not to draw progress bars.

    Raises:
        DataError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"tables are read by the datasets library, and {error}", hint=INSTALL) from error
    datasets.disable_progress_bars()  # several processes would write them into each other's lines
    return datasets


@contextmanager
def _offline() -> Iterator[None]:
    """Let the library ask no hub, not even where a folder of data names files that lie there."""
    import datasets
    import huggingface_hub

    flags = [(datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in flags]
    for module, name in flags:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(flags, before, strict=True):
            setattr(module, name, value)


@contextmanager
def explaining(what: str, json_files: Sequence[Path] = ()) -> Iterator[None]:
    """Run code of the library, off the network; what it raises becomes a DataError that begins with ``what``.

    Of ``json_files`` the line that is not JSON is looked for, since the library does not name it. Memory that runs
    out is passed on as it is.
    """
    library = logging.getLogger("datasets")
    level = library.level
    library.setLevel(logging.CRITICAL)  # it logs its errors, too
    try:
        with _offline():
            yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(_broken_line(json_files) or f"{what}: {_words(error)}") from error
    finally:
        library.setLevel(level)


def _words(error: BaseException) -> str:
    """What went wrong at the bottom of it: the library wraps errors of readers in one that says nothing."""
    while type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, StopIteration):
        return "it holds no records"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _broken_line(files: Sequence[Path]) -> str | None:
    """The first place in files of JSON, or of a JSON value a line, that is not that; None where there is none."""
    for path in files:
        try:
            with path.open(encoding="utf-8-sig") as file:
                whole = file.read(4096).lstrip()[:1] == "["
                file.seek(0)
                for number, text in [(0, file.read())] if whole else enumerate(file, start=1):
                    _parse(path, number, text)
        except DataError as error:
            return error.message
        except UnicodeDecodeError:
            return f"{path} is not UTF-8 text"
        except (OSError, RecursionError):
            continue
    return None


def _parse(path: Path, number: int, text: str) -> None:
    try:
        if text.strip():
            json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number or error.lineno}: not JSON at column {error.colno}: {error.msg}"
        ) from None
