"""Logging of the logger "runformer": MindFormers' console lines, and info.log and error.log for each rank."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable
from logging.handlers import RotatingFileHandler
from pathlib import Path

from runformer.errors import RunformerError

LOGGER_NAME = "runformer"

WORKER_LOG_VARIABLE = "RUNFORMER_WORKER_LOG"
"""Set where each rank's standard output has a file of its own, so that every rank may print all that it has to say."""

_FILE_FORMAT = "[%(levelname)s] %(asctime)s [%(source)s:%(lineno)s] %(funcName)s: %(message)s"
_MAX_FILE_BYTES = 50 * 2**20
_OLD_FILES_KEPT = 5
_SOURCE_ROOT = Path(__file__).resolve().parents[2]


def setup_logging(log_dir: Path, rank: int = 0, notices: Iterable[str] = ()) -> logging.Logger:
    """Send the records (INFO and above) of "runformer" and the loggers below it to the console and to files.

    The files are ``<log_dir>/rank_<rank>/info.log`` and ``error.log`` (ERROR and above), appended to. A second
    call replaces what the first set up. Other libraries' loggers are left alone.

    Args:
        log_dir: the folder of logs; the environment variable ``LOG_MF_PATH`` overrides it.
        rank: this process's rank.
        notices: what the run has to tell before anything else; rank 0 tells it.

    Raises:
        RunformerError: the files cannot be made.
    """
    directory = Path(os.environ.get("LOG_MF_PATH") or log_dir)
    handlers: list[logging.Handler] = _file_handlers(directory / f"rank_{rank}")
    console = _console_handler(directory)
    if rank > 0 and WORKER_LOG_VARIABLE not in os.environ:  # all ranks print on one terminal
        console.setLevel(logging.WARNING)
    handlers.append(console)
    close_logging()
    logger = logging.getLogger(LOGGER_NAME)
    logger.setLevel(logging.INFO)
    # Anything installed on the root logger (by absl, a notebook, a cluster's agent) would print every line twice.
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    for notice in notices if rank == 0 else ():
        logger.info(notice)
    return logger


def close_logging() -> None:
    """Undo ``setup_logging``: flush and close its files and give the logger back as Python made it."""
    logger = logging.getLogger(LOGGER_NAME)
    for handler in [handler for handler in logger.handlers if isinstance(handler, ConsoleHandler | _FileHandler)]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


class ConsoleHandler(logging.Handler):
    """Prints records on standard output, as it is at that moment.

    ``write_line`` is what prints; a progress bar replaces it while it occupies the last line of the terminal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.write_line: Callable[[str], None] = write_stdout_line

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record; when nobody reads standard output any more, the run goes on without it."""
        try:
            self.write_line(self.format(record))
        except OSError as error:
            _drop(self, f"standard output is gone ({error.strerror}): records go to info.log only")
        except Exception:
            self.handleError(record)


def write_stdout_line(line: str) -> None:
    """Print a line whole and at once, with '?' for characters that the terminal's encoding lacks."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(line.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stdout.flush()


class _FileHandler(RotatingFileHandler):
    """A log file that gives up with one line on standard error when its disk is full: the run is worth more."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            _drop(self, f"no more records in {self.baseFilename}: {error.strerror}")
        else:
            super().handleError(record)


def _drop(handler: logging.Handler, reason: str) -> None:
    logging.getLogger(LOGGER_NAME).removeHandler(handler)
    # What could not be written is still in its buffer, and closing tries again.
    with contextlib.suppress(OSError):
        handler.close()
    print(f"runformer: {reason}", file=sys.stderr)


class _SourceFormatter(logging.Formatter):
    """Adds ``source``: the file that logged, from the folder that holds the package (``runformer/train/loop.py``)."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        path = Path(record.pathname)
        record.source = path.relative_to(_SOURCE_ROOT) if path.is_relative_to(_SOURCE_ROOT) else path.name
        return super().formatMessage(record)


def _console_handler(directory: Path) -> ConsoleHandler:
    # MindFormers shows a relative folder with its "./": `mindformers./output/log[...]`. Scripts that read
    # its logs look for that prefix, so its name stays in ours.
    shown = directory if directory.is_absolute() else f"./{directory}"
    name = f"mindformers{shown}".replace("%", "%%")
    handler = ConsoleHandler()
    handler.setFormatter(_SourceFormatter(f"%(asctime)s - {name}[%(source)s:%(lineno)s] - %(levelname)s - %(message)s"))
    return handler


def _file_handlers(directory: Path) -> list[logging.Handler]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return [
            _file_handler(directory / "info.log", logging.INFO),
            _file_handler(directory / "error.log", logging.ERROR),
        ]
    except OSError as error:
        hint = "choose another folder with --output_dir, or for logs only with the environment variable LOG_MF_PATH"
        raise RunformerError(f"cannot write log files in {directory}: {error.strerror}", hint=hint) from error


def _file_handler(path: Path, level: int) -> _FileHandler:
    handler = _FileHandler(path, maxBytes=_MAX_FILE_BYTES, backupCount=_OLD_FILES_KEPT, encoding="utf-8")
    handler.setLevel(level)
    handler.setFormatter(_SourceFormatter(_FILE_FORMAT))
    return handler
