"""Saving: one directory a step, complete or not there at all."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from runformer.checkpoint.layout import (
    COMMON,
    MANIFEST,
    clear_leftovers,
    complete_checkpoints,
    directory_name,
    remove_directory,
    staged_directory,
)
from runformer.checkpoint.manifest import FileRecord, Manifest, TensorRecord, is_plain_name
from runformer.checkpoint.tensor_file import HashedWriter, write_tensors
from runformer.errors import CheckpointError, ConfigError

CHUNK_BYTES = 16 << 20
"""Length of the pieces of a file that have a hash each: damage is found and named to this precision."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingState:
    """All that a run needs to go on as if it had never stopped.

    Attributes:
        model: every parameter by name.
        optimizer: its tensors, of AdamW ``exp_avg.<parameter>`` and ``exp_avg_sq.<parameter>``; none before an update.
        common: what JSON can hold; ``step`` (updates so far) must be there.
    """

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    common: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Steps done when this was the state."""
        return int(self.common["step"])


class CheckpointStore:
    """The checkpoints of one run in the folder ``root``, of which the newest ``keep`` stay.

    Raises:
        ConfigError: files cannot begin with ``prefix``, or ``keep`` is below 1.
    """

    def __init__(self, root: Path, prefix: str, keep: int) -> None:
        if not is_plain_name(prefix):
            raise ConfigError(f"callbacks: CheckpointMonitor: prefix {prefix!r}: no file name can begin with it")
        if keep < 1:
            raise ConfigError(f"callbacks: CheckpointMonitor: keep_checkpoint_max {keep}: at least 1 must be kept")
        self.root = root
        self.prefix = prefix
        self.keep = keep

    def save(self, state: TrainingState) -> Path:
        """Write one checkpoint, then remove the oldest beyond ``keep``; the directory that it stands in.

        It is on the disk when this returns. An error or an interrupt leaves all older ones as they were,
        one of the same step included. Memory beyond the state's own: one tensor at most.

        Raises:
            CheckpointError: the disk is full, the folder cannot be written, or a tensor cannot be stored.
        """
        final = self.root / directory_name(state.step)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            clear_leftovers(self.root)
            with staged_directory(final) as staged:
                self._write(staged, state)
        except OSError as error:
            raise self._failure(state.step, error) from error
        self.prune(state.step)
        return final

    def list(self) -> dict[int, Path]:
        """Complete checkpoints by step, lowest first."""
        return complete_checkpoints(self.root)

    def newest(self) -> Path | None:
        """The complete checkpoint of the highest step."""
        return next(reversed(self.list().values()), None)

    def prune(self, saved: int) -> None:
        """Remove all but the newest ``keep`` checkpoints up to the step ``saved``.

        Higher steps are another run's, whose work is not this one's to remove. What cannot be removed is
        logged and stays: the new checkpoint stands.
        """
        steps = [step for step in self.list() if step <= saved]
        for step in steps[: -self.keep]:
            path = self.root / directory_name(step)
            try:
                remove_directory(path)
            except OSError as error:
                _log.warning("%s: this old checkpoint cannot be removed: %s", path, error.strerror)

    def _write(self, directory: Path, state: TrainingState) -> None:
        files: dict[str, FileRecord] = {}
        tensors: dict[str, TensorRecord] = {}
        for part, content in (("model", state.model), ("opt", state.optimizer)):
            name = f"{self.prefix}-{part}-0000000-0000001.safetensors"
            files[name], layout = write_tensors(directory / name, content, CHUNK_BYTES)
            tensors |= layout
        common = json.dumps(dict(state.common), indent=1, allow_nan=False) + "\n"
        files[COMMON] = _write_text(directory / COMMON, common)
        _write_text(directory / MANIFEST, Manifest(CHUNK_BYTES, files, tensors).to_json())

    def _failure(self, step: int, error: OSError) -> CheckpointError:
        newest = self.newest()
        kept = f"the newest checkpoint is still {newest}" if newest else "there is no older checkpoint"
        return CheckpointError(
            f"{self.root}: the checkpoint of step {step} cannot be saved: {error.strerror or error}; {kept}",
            hint="make room, or give another folder with --output_dir, then go on with --resume_training True",
        )


def _write_text(path: Path, text: str) -> FileRecord:
    with HashedWriter(path, CHUNK_BYTES) as writer:
        writer.write(text.encode())
        return writer.record()
