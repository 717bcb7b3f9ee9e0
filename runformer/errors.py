"""The tree of errors that a user of Runformer can meet.

Every error carries one message for a person: what is wrong, where, and what to do. The front door
(``runformer.cli.main``) prints it without a traceback and exits with ``exit_code``::

    RunformerError            1
    ├── UsageError            2   the command line
    ├── ConfigError          78   the YAML file or an override (sysexits.h: EX_CONFIG)
    ├── DeviceError           1   a device that is not there
    ├── DataError             1   a dataset file or one of its records
    ├── TokenizerError        1   a tokenizer folder or file
    ├── CheckpointError       1   weights or a checkpoint, on the way in or out
    ├── TrainingError         1   a run that cannot go on (a loss that is not finite)
    └── PredictError          1   a prompt or a generation option
"""

from __future__ import annotations


class RunformerError(Exception):
    """An error explained to a person.

    Args:
        message: what is wrong and where (file, line, key, record, tensor), without a final newline.
        hint: what to do about it; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class UsageError(RunformerError):
    """The command line is wrong."""

    exit_code = 2


class ConfigError(RunformerError):
    """The configuration is wrong: a YAML file, a key, a value, an override."""

    exit_code = 78


class DeviceError(RunformerError):
    """The device that was asked for is not there."""


class DataError(RunformerError):
    """A dataset file is missing or damaged, or one of its records does not fit the task."""


class TokenizerError(RunformerError):
    """A tokenizer is missing, damaged, or does not fit the model."""


class CheckpointError(RunformerError):
    """Weights or a checkpoint cannot be read or written."""


class DamageError(CheckpointError):
    """A checkpoint's bytes are not those that were written; an older one may be whole."""


class TrainingError(RunformerError):
    """Training cannot go on."""


class PredictError(RunformerError):
    """A prompt or a generation option cannot be used."""


class LaunchError(RunformerError):
    """A job's processes cannot be started, or do not find each other."""


class ClusterTimeoutError(LaunchError):
    """Not all machines of a job came in time."""

    exit_code = 124


class ParallelError(RunformerError):
    """The processes of a run do not come together, or disagree."""


class Preempted(RunformerError):
    """The run was told to end, has saved where it stands, and ends; not a mistake of anybody."""

    exit_code = 75
