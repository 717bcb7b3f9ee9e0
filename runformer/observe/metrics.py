"""``training.jsonl``: one row a step, the truth of a run. Console, progress bar and reports are views of it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from runformer.errors import RunformerError, TrainingError

# Rows are about 300 bytes; a torn end longer than this is no row of ours.
_LONGEST_ROW = 1 << 20


@dataclass(frozen=True, slots=True)
class StepRow:
    """One optimizer step.

    Attributes:
        step: 1-based, over the whole run.
        epoch: 1-based.
        loss: mean over the step's valid tokens.
        grad_norm: before clipping; None where clipping is off, and where it overflowed (JSON has no infinity).
        lr: the learning rate that the step used.
        tokens: tokens in the step's batch, over all devices.
        tokens_per_second: over all devices.
        step_seconds: wall time, the wait for data included.
        mfu: model FLOP/s over the device's peak; None where the peak is not known.
        peak_memory_bytes: the most that this process had allocated so far.
        data_seconds: the part of ``step_seconds`` spent waiting for data.
    """

    step: int
    epoch: int
    loss: float
    grad_norm: float | None
    lr: float
    tokens: int
    tokens_per_second: float
    step_seconds: float
    mfu: float | None
    peak_memory_bytes: int
    data_seconds: float

    def to_json(self) -> str:
        """One line of JSON without its newline; floats read back bit for bit.

        Raises:
            TrainingError: a figure that must be finite is not.
        """
        values = {key: self._finite(key, value) for key, value in asdict(self).items()}
        return json.dumps(values, allow_nan=False)

    def _finite(self, key: str, value: float | None) -> float | None:
        if value is None or _is_finite(value):
            return value
        if key not in _NULLABLE:
            raise TrainingError(
                f"step {self.step}: {key} is {value}", hint="the rows before it in training.jsonl are good"
            )
        return None


_FIELDS = tuple(field.name for field in fields(StepRow))
_WHOLE = frozenset({"step", "epoch", "tokens", "samples", "peak_memory_bytes"})
_NULLABLE = frozenset({"grad_norm", "mfu"})


def parse_row(text: str | bytes) -> StepRow:
    """One line of ``training.jsonl``. Keys that it does not know (of a later version) are ignored.

    Raises:
        ValueError: it is not JSON, or a key is missing or of another type.
    """
    return StepRow(**read_values(text, _FIELDS, _NULLABLE))


def read_values(text: str | bytes, keys: Collection[str], nullable: Collection[str]) -> dict[str, Any]:
    """The numbers under ``keys`` of a line of JSON; those of ``nullable`` may be None.

    Raises:
        ValueError: it is not JSON, or a key is missing or of another type.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    for key in keys:
        _check_value(key, values, nullable)
    return {key: values[key] for key in keys}


def _check_value(key: str, values: dict[str, Any], nullable: Collection[str]) -> None:
    if key not in values:
        raise ValueError(f"no key {key}")
    value = values[key]
    if value is None and key in nullable:
        return
    kind = int if key in _WHOLE else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not _is_finite(value):
        raise ValueError(f"{key} is {value!r}")


def _is_finite(value: float) -> bool:
    # False for NaN too, and unlike math.isfinite it takes integers of any size.
    return -math.inf < value < math.inf


def read_rows(path: Path) -> list[StepRow]:
    """The rows in order of step; where a step stands twice (after a resume) the later row counts.

    A last line without its newline is still being written, or was cut off, and is left out.

    Raises:
        RunformerError: the file is missing, or a line in it is not a row.
    """
    rows = {row.step: row for row in _rows(path)}
    return [rows[step] for step in sorted(rows)]


def _rows(path: Path) -> Iterator[StepRow]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    yield _parse_line(path, number, line)
    except OSError as error:
        raise RunformerError(f"cannot read {path}: {error.strerror}") from error


def _parse_line(path: Path, number: int, line: bytes) -> StepRow:
    try:
        return parse_row(line)
    except ValueError as error:
        hint = "it is not a training.jsonl, or it was edited: remove that line"
        raise RunformerError(f"{path}, line {number}: not a row of training metrics ({error})", hint=hint) from error


class Row(Protocol):
    """One line of a file of figures."""

    def to_json(self) -> str:
        """It, without its newline."""


Parser = Callable[[bytes], Row]
"""Reads one line; a ValueError says that it is no row."""


def _end_of_rows(tail: bytes, parse: Parser) -> int:
    """Where the whole rows at the end of a file stop; what follows is a row that a crash cut off.

    Raises:
        ValueError: what follows, or the line before it, is nothing that a writer of rows leaves.
    """
    end = tail.rfind(b"\n") + 1
    if end and end == len(tail) and not _is_row(_last_line(tail), parse):
        end = tail.rfind(b"\n", 0, end - 1) + 1
    # Some file systems fill with zero bytes what did not reach the disk.
    if not tail[end:].startswith((b"{", b"\0")) and end < len(tail):
        raise ValueError("its end is not a row of figures")
    if end and not _is_row(_last_line(tail[:end]), parse):
        raise ValueError("its last lines are not rows of figures")
    return end


def _last_line(lines: bytes) -> bytes:
    return lines[lines.rfind(b"\n", 0, -1) + 1 :]


def _is_row(line: bytes, parse: Parser) -> bool:
    try:
        parse(line)
    except ValueError:
        return False
    return True


def _open_repaired(path: Path, parse: Parser) -> io.FileIO:
    # Unbuffered: a row has reached the operating system when write() returns, whatever happens to us after.
    file = io.FileIO(path, "ab+")
    try:
        start = max(0, file.seek(0, os.SEEK_END) - _LONGEST_ROW)
        file.seek(start)
        end = _end_of_rows(file.readall(), parse)
        if start and not end:
            raise ValueError("its last line is too long")
        file.truncate(start + end)
    except ValueError as error:
        file.close()
        hint = "move it away, or choose another --output_dir"
        raise RunformerError(f"{path} is not the {path.name} of a run: {error}", hint=hint) from error
    return file


class MetricsWriter:
    """Appends rows to ``training.jsonl``. Opening it removes a torn last line, so that a resumed run goes on in it.

    Args:
        path: the file; it and its folder are made where they are missing.
        parse: how a line of the file is read, where it is one of other rows.

    Raises:
        RunformerError: the file cannot be opened, or what stands in it is something else.
    """

    def __init__(self, path: Path, parse: Parser = parse_row) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_repaired(path, parse)
        except OSError as error:
            raise self._error(error) from error

    def write(self, row: Row) -> None:
        """Append one row and hand it to the operating system; all of it, or nothing.

        Raises:
            TrainingError: a figure of the row is not finite.
            RunformerError: the disk is full or gone.
        """
        line = row.to_json().encode() + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise self._error(error) from error

    def sync(self) -> None:
        """Wait until every row is on disk. A checkpoint commits only after its step's row is."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _error(self, error: OSError) -> RunformerError:
        return RunformerError(
            f"cannot write {self._path}: {error.strerror}", hint="free some space there, or choose another --output_dir"
        )
