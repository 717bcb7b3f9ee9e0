"""What people ask of the checkpoints of a run: which there are, what is in them, whether they are whole."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from runformer.checkpoint.description import described
from runformer.checkpoint.keep import Keep
from runformer.checkpoint.layout import MANIFEST, complete_checkpoints, remove_directory
from runformer.checkpoint.reader import Checkpoint, open_checkpoint
from runformer.errors import CheckpointError, DamageError

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_DAY, _HOUR, _MINUTE = 86400, 3600, 60


def checkpoints_in(path: Path) -> Mapping[int, Path]:
    """Complete checkpoints by step: of a run, or the one that the path is.

    Raises:
        CheckpointError: there is none.
    """
    if (path / MANIFEST).is_file():
        return {int(open_checkpoint(path).common["step"]): path}
    for folder in (path, path / "checkpoint"):
        if found := complete_checkpoints(folder):
            return found
    raise CheckpointError(f"{path}: there is no checkpoint here", hint="give an output folder, or one checkpoint in it")


def table(path: Path) -> str:
    """All checkpoints, a line each."""
    lines = [f"{'step':>10}  {'size':>10}  {'files':>5}  {'written':<12}  folder"]
    for step, folder in checkpoints_in(path).items():
        files = [file for file in folder.iterdir() if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        age = time.time() - (folder / MANIFEST).stat().st_mtime
        lines.append(f"{step:>10}  {_bytes(size):>10}  {len(files):>5}  {_ago(age):<12}  {folder}")
    return "\n".join(lines)


def description(path: Path, *, every: bool) -> str:
    """What the newest checkpoint holds: its place in the run, its model, its tensors by kind or ``every`` one."""
    checkpoint = open_checkpoint(_newest(path))
    common = checkpoint.common
    lines = [str(checkpoint.path)]
    names = ("step", "epoch", "samples", "updates", "global_batch_size", "seed")
    lines.append("  " + ", ".join(f"{name} {common[name]}" for name in names if name in common))
    if found := described(common):
        options, lora = found
        shape = (
            f"{options.num_layers} layers of {options.hidden_size}, {options.num_heads} heads on {options.num_kv_heads}"
        )
        adapters = "" if lora is None else f", LoRA of rank {lora.rank} on {lora.target_modules}"
        lines.append(f"  {shape}, {options.vocab_size} tokens{adapters}")
    return "\n".join([*lines, *(_every(checkpoint) if every else _by_kind(checkpoint))])


def verify(path: Path) -> tuple[bool, str]:
    """Whether every byte of all checkpoints is as it was written, and which are not."""
    lines, intact = [], True
    for step, folder in checkpoints_in(path).items():
        try:
            open_checkpoint(folder).verify()
            lines.append(f"step {step}: intact")
        except DamageError as error:
            intact = False
            lines.append(f"step {step}: {error.message}")
    return intact, "\n".join(lines)


def prune(path: Path, keep: int, *, dry: bool) -> str:
    """Remove all but the newest checkpoints.

    Raises:
        ConfigError: none would be kept.
        CheckpointError: there is none, or one cannot be removed.
    """
    doomed = Keep(keep).too_old(checkpoints_in(path))
    for folder in doomed if not dry else ():
        try:
            remove_directory(folder)
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be removed: {error.strerror}") from None
    done = "would remove" if dry else "removed"
    return "\n".join(f"{done} {folder}" for folder in doomed) or "nothing to remove"


def _newest(path: Path) -> Path:
    found = checkpoints_in(path)
    return found[max(found)]


def _by_kind(checkpoint: Checkpoint) -> list[str]:
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for name in checkpoint:
        first = name.partition(".")[0]
        kind = "parameters" if first in ("model", "lm_head") else first
        count = counts[kind, checkpoint.kind(name)]
        count[0] += 1
        count[1] += math.prod(checkpoint.shape(name))
    return [
        f"  {kind}: {tensors} tensors, {size:,} elements of {dtype}"
        for (kind, dtype), (tensors, size) in counts.items()
    ]


def _every(checkpoint: Checkpoint) -> list[str]:
    return [f"  {name} {checkpoint.kind(name)} {list(checkpoint.shape(name))}" for name in checkpoint]


def _bytes(size: float) -> str:
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _ago(seconds: float) -> str:
    for name, length in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= length:
            return f"{seconds / length:.0f} {name} ago"
    return f"{max(0, seconds):.0f} s ago"
