"""What a worker leaves of the error that ended it, for whoever started it.

The file is the one that ``torch.distributed.elastic`` names in ``TORCHELASTIC_ERROR_FILE``, in its format: under plain
``torchrun`` too the summary then names the error. What we add to it stands in ``extraInfo``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sysconfig
import time
import traceback
from pathlib import Path
from typing import Any

VARIABLE = "TORCHELASTIC_ERROR_FILE"

_LONGEST_TEXT = 4000
_OTHERS_CODE = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def record_error(error: BaseException, *, message: str | None = None) -> None:
    """Write the error to the file that the launcher named; the first one counts, and without a launcher none.

    Args:
        error: what was raised.
        message: what to say of it; None: its type and text.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    text = (message or describe(error))[:_LONGEST_TEXT]
    extra: dict[str, Any] = {
        "py_callstack": "".join(traceback.format_exception(error))[-_LONGEST_TEXT:],
        "timestamp": str(int(time.time())),
        "time": time.time(),
        "type": type(error).__name__,
        "hint": getattr(error, "hint", None),
        "frame": last_own_frame(error),
    }
    with contextlib.suppress(OSError), open(path, "x") as file:  # noqa: PTH123
        json.dump({"message": {"message": text, "extraInfo": extra}}, file)


def describe(error: BaseException) -> str:
    """The error's type and text, as Python's tracebacks end."""
    return "".join(traceback.format_exception_only(error)).strip()


def last_own_frame(error: BaseException) -> str | None:
    """Where it was raised: the last line on its way that is the user's or ours, not a library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_library(frame.filename)]
    if not own:
        return None
    frame = own[-1]
    return f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"


def _is_library(filename: str) -> bool:
    if filename.startswith("<"):
        return True
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        return False
    return filename.startswith(_OTHERS_CODE)
