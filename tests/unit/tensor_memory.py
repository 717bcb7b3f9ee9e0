"""What tensors take while something runs, as PyTorch's profiler sees them come and go."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import torch


def taken(folder: Path, work: Callable[[], object]) -> list[int]:
    """Bytes above those before the work, after each tensor that came or went; what it gives is kept until the end."""
    with torch.profiler.profile(profile_memory=True) as profile:
        made = work()
    profile.export_chrome_trace(str(folder / "trace.json"))
    del made
    found = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = [event for event in found if event.get("name") == "[memory]"]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: float(event["ts"]))]
    return list(itertools.accumulate(changes))
