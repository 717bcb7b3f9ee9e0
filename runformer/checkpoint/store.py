"""Saving: one directory a step, written by all processes together, complete or not there at all."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from runformer.checkpoint.keep import Keep
from runformer.checkpoint.layout import (
    clear_leftovers,
    complete_checkpoints,
    directory_name,
    discard,
    newest_checkpoint,
    put_in_place,
    remove_directory,
    staged_path,
)
from runformer.checkpoint.manifest import Manifest, is_plain_name
from runformer.checkpoint.share import TrainingState, Writer
from runformer.checkpoint.staging import Staging
from runformer.errors import CheckpointError, ConfigError
from runformer.observe.pulse import pulse
from runformer.parallel.group import Group, alone

_LOWEST = 19  # of Linux's priorities
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Saving:
    """A checkpoint on its way: where it is written, where it will stand, and what this process has written of it."""

    step: int
    staged: Path
    final: Path
    written: Future[Manifest]


class CheckpointStore:
    """The checkpoints of one run in the folder ``root``.

    Args:
        root: where they are; all processes must see the same folder.
        prefix: what their files' names begin with.
        keep: which of them stay.
        group: the processes that write them together; None: this one alone.
        behind: training goes on while they are written: ``begin`` copies the state, and ``poll`` says when it is saved.

    Raises:
        ConfigError: files cannot begin with ``prefix``.
    """

    def __init__(
        self, root: Path, prefix: str, keep: Keep, group: Group | None = None, *, behind: bool = False
    ) -> None:
        if not is_plain_name(prefix):
            raise ConfigError(f"callbacks: CheckpointMonitor: prefix {prefix!r}: no file name can begin with it")
        self.root = root
        self.keep = keep
        self._group = group or alone(torch.device("cpu"))
        self._writer = Writer(prefix, self._group.rank, self._group.size)
        self._staging = Staging()
        self._thread = ThreadPoolExecutor(1, "checkpoint", _step_back) if behind else None
        self._saving: _Saving | None = None
        self._pruning: Future[None] | None = None

    def save(self, state: TrainingState) -> Path:
        """Write one checkpoint, then remove old ones; the directory that it stands in. All processes take part.

        It is on the disk when this returns. An error or an interrupt leaves all older ones as they were,
        one of the same step included. Memory beyond the state's own: one tensor at most.

        Raises:
            CheckpointError: the disk is full, the folder cannot be written, or a tensor cannot be stored. Where that is
                so on another process alone, this does not return.
        """
        self.begin(state)
        path = self.finish()
        assert path is not None, "a checkpoint was begun"
        return path

    def begin(self, state: TrainingState) -> None:
        """Begin to write a checkpoint, once one that was begun before is saved. All processes take part.

        Raises:
            CheckpointError: as ``save``.
        """
        self.finish()
        final = self.root / directory_name(state.step)
        try:
            staged = self._open(final)
        except OSError as error:
            raise self._failure(state.step, error) from error
        if self._thread is None:
            written = _at_once(lambda: self._writer.write(staged, state, pulse().refresh), staged)
        else:
            copies = self._staging.copies
            held = replace(state, model=copies(state.model), optimizer=copies(state.optimizer))
            written = self._thread.submit(self._writer.write, staged, held, lambda: None)
        self._saving = _Saving(state.step, staged, final, written)

    def poll(self) -> Path | None:
        """Where a checkpoint that was begun is now saved; None: there is none, or not yet. All processes take part.

        Raises:
            CheckpointError: as ``save``.
        """
        if self._saving is None or self._group.any(not self._saving.written.done()):
            return None
        return self.finish()

    def finish(self) -> Path | None:
        """Wait until a checkpoint that was begun is saved; where that is. All processes take part.

        Raises:
            CheckpointError: as ``save``.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return None
        error = saving.written.exception()
        if self._group.any(error is not None):
            self._give_up(saving, error)
        if self._group.is_first:
            self._commit(saving)
        return saving.final

    def prune(self, saved: int) -> None:
        """Remove those of the checkpoints up to the step ``saved`` that need not be kept.

        Higher steps are another run's, whose work is not this one's to remove. What cannot be removed is
        logged and stays: the new checkpoint stands.
        """
        for path in self.keep.too_old(
            {step: path for step, path in complete_checkpoints(self.root).items() if step <= saved}
        ):
            try:
                remove_directory(path)
            except OSError as error:
                _log.warning("%s: this old checkpoint cannot be removed: %s", path, error.strerror)

    def _open(self, final: Path) -> Path:
        """A new hidden directory, which the first process makes, and all write into."""
        if self._group.is_first:
            if self._pruning is not None:
                self._pruning.result()  # else its own half-removed directories would be leftovers
            self.root.mkdir(parents=True, exist_ok=True)
            clear_leftovers(self.root)
            staged_path(final, os.getpid()).mkdir()
        maker = self._group.gather(os.getpid())[0]
        return staged_path(final, maker)

    def _commit(self, saving: _Saving) -> None:
        try:
            self._writer.put_together(saving.staged, saving.written.result())
            put_in_place(saving.staged, saving.final)
        except OSError as error:
            discard(saving.staged)
            raise self._failure(saving.step, error) from error
        except BaseException:
            discard(saving.staged)
            raise
        if self._thread is None:
            self.prune(saving.step)
        else:
            self._pruning = self._thread.submit(self.prune, saving.step)

    def _give_up(self, saving: _Saving, error: BaseException | None) -> None:
        """Leave no half of a checkpoint. The process that has failed says so; no other goes on."""
        if self._group.is_first:
            discard(saving.staged)
        if isinstance(error, OSError):
            raise self._failure(saving.step, error) from error
        if error is not None:
            raise error
        self._group.barrier()  # which the failed one does not come to

    def _failure(self, step: int, error: OSError) -> CheckpointError:
        newest = newest_checkpoint(self.root)
        kept = f"the newest checkpoint is still {newest}" if newest else "there is no older checkpoint"
        why, hint = error.strerror or str(error), "make room, or give another folder with --output_dir"
        if error.errno == errno.ENOENT and self._group.size > 1:
            if not self._group.is_first:
                why = "the directory that rank 0 has made for it is not to be seen here"
            hint = "let --output_dir be a folder on a disk that all machines share"
        return CheckpointError(
            f"{self.root}: the checkpoint of step {step} cannot be saved: {why}; {kept}",
            hint=f"{hint}, then go on with --resume_training True",
        )


def _step_back() -> None:
    """Let the calling thread have a processor only when training leaves one; the threads that it starts, too."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)


def _at_once(work: Callable[[], Manifest], staged: Path) -> Future[Manifest]:
    """What a thread would give, done here and now; an interrupt leaves nothing behind."""
    done: Future[Manifest] = Future()
    try:
        done.set_result(work())
    except Exception as error:
        done.set_exception(error)
    except BaseException:
        discard(staged)
        raise
    return done
