"""What the benchmarks share: the machine's description, peak memory, tables."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def describe_machine() -> str:
    """Processor, cores and the versions that figures depend on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"{model}, {os.cpu_count()} cores, {versions}, Python {platform.python_version()}"


def peak_rss_bytes() -> int:
    """The most memory that this process was resident in so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def write_table(title: str, head: list[str], rows: list[list[str]], output: Path | None) -> None:
    """Print a Markdown table, and write it to a file where one is given."""
    lines = [title, "", *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))]
    text = "\n".join(lines) + "\n"
    print(text)
    if output is not None:
        output.write_text(text, encoding="utf-8")
