"""The launcher's own words: on its console, and with their times in ``scheduler.log``."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path

NAME = "runformer.launch"
_FORMAT = "%(asctime)s - %(levelname)s - %(message)s"


class _Console(logging.Handler):
    """Prints on standard error, as it is at that moment; when nobody reads it any more the job goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(f"msrun: {record.getMessage()}", file=sys.stderr, flush=True)
        except OSError:
            logging.getLogger(NAME).removeHandler(self)


def record_traceback(error: BaseException) -> None:
    """Write an error's traceback to the file, not to the console."""
    for handler in logging.getLogger(NAME).handlers:
        if isinstance(handler, logging.FileHandler):
            text = "".join(traceback.format_exception(error))
            handler.handle(logging.LogRecord(NAME, logging.ERROR, __file__, 0, text, None, None))


def set_up_records(path: Path, *, console: bool) -> logging.Logger:
    """The launcher's logger, writing to a file, and where somebody watches to the console."""
    logger = logging.getLogger(NAME)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(file)
    if console:
        logger.addHandler(_Console())
    return logger
