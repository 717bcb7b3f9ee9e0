"""An exception inside a plug-in, turned into one message that names its line."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runformer.errors import RunformerError
from runformer.plugins.registry import Registration, shown


@contextmanager
def blaming(plugin: Registration, error_type: Callable[..., RunformerError], where: str = "") -> Iterator[None]:
    """Run code of a plug-in; what it raises becomes an ``error_type`` that names the plug-in and the line.

    A ValueError is the plug-in's own word on what it was given, so its text stands alone. Memory that runs out is
    passed on as it is: that is seldom the plug-in's doing.

    Args:
        plugin: whose code runs.
        error_type: a class of ``runformer.errors``.
        where: what it works on, such as a record.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
            raise
        place = line_in(error, plugin.file.parent) or plugin.place
        about = f"{where}: " if where else ""
        if isinstance(error, ValueError):
            raise error_type(f"{about}{error} (says the {plugin}, {place})") from error
        raise error_type(f"{about}{place}: the {plugin} raised {spell(error)}", hint=_HINT) from error


_HINT = "add --debug to see the whole traceback"


def line_in(error: BaseException, folder: Path) -> str | None:
    """The innermost ``file:line`` of an exception that lies in a folder."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_relative_to(folder):
        return f"{shown(Path(error.filename))}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    return f"{shown(Path(inside[-1].filename))}:{inside[-1].lineno}" if inside else None


def spell(error: BaseException) -> str:
    """``ValueError: betas must be two numbers``."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
