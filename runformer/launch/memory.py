"""What the kernel says about a process that it killed for memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def oom_files(text: str, root: Path = _CGROUPS) -> list[Path]:
    """Where the out-of-memory killer's counts of our control group may stand.

    Args:
        text: ``/proc/self/cgroup``: of version 2 a line ``0::/path``, of version 1 ``4:memory:/path``.
        root: where control groups are mounted. In a container it is often our own group's.
    """
    paths = []
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths += [root / path.lstrip("/") / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            tree = root / "memory"
            paths += [tree / path.lstrip("/") / "memory.oom_control", tree / "memory.oom_control"]
    return paths


class OutOfMemoryWatch:
    """Tells whether the out-of-memory killer was at work in our control group since the watch began.

    Args:
        files: where its counts may stand; None: those of this process. The first that can be read counts.
    """

    def __init__(self, files: Iterable[Path] | None = None) -> None:
        self._files = _own_files() if files is None else list(files)
        self._before = self._kills()

    def hint(self) -> str:
        """What to say of a rank that SIGKILL ended."""
        before, now = self._before, self._kills()
        if before is None or now is None:
            return "SIGKILL often means out of memory: look at dmesg"
        if now == before:
            return "SIGKILL often means out of memory; this control group counts no such kill, so look at dmesg"
        kills = f"{now - before} kill{'s' * (now - before > 1)}"
        return f"out of memory: the control group counts {kills}; use a smaller batch_size or give it more memory"

    def _kills(self) -> int | None:
        for path in self._files:
            try:
                counts = dict(line.split()[:2] for line in path.read_text().splitlines())
                return int(counts["oom_kill"])
            except (OSError, ValueError, KeyError):
                continue
        return None


def _own_files() -> list[Path]:
    try:
        return oom_files(Path("/proc/self/cgroup").read_text())
    except (OSError, ValueError):
        return []
