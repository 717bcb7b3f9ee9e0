"""Which checkpoints stay when a new one is saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runformer.checkpoint.layout import MANIFEST
from runformer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Keep:
    """The ``newest`` so many stay, or all where that is None; or one for every so many ``minutes``, and the newest.

    Raises:
        ConfigError: that would be none.
    """

    newest: int | None = None
    minutes: int | None = None

    def __post_init__(self) -> None:
        for key, value in (("keep_checkpoint_max", self.newest), ("keep_checkpoint_per_n_minutes", self.minutes)):
            if value is not None and value < 1:
                raise ConfigError(f"callbacks: CheckpointMonitor: {key} {value}: at least 1 must be kept")

    def too_old(self, checkpoints: Mapping[int, Path]) -> list[Path]:
        """Those that need not stay, of checkpoints by step."""
        paths = [checkpoints[step] for step in sorted(checkpoints)]
        if self.newest is not None:
            return paths[: -self.newest]
        if self.minutes is None:
            return []
        old, kept = [], float("-inf")
        for path in paths[:-1]:
            written = (path / MANIFEST).stat().st_mtime
            if written - kept < 60 * self.minutes:
                old.append(path)
            else:
                kept = written
        return old
