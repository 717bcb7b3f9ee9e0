"""Curves of layouts, trained by ``exactness.py``, and how far they are from one another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launching import REPOSITORY, launch

SCRIPT = str(REPOSITORY / "tests/dist/exactness.py")
Curve = list[list[float]]
"""Loss and gradient norm of every step."""


def curves(folder: Path, world_size: int, cases: dict[str, dict[str, Any]]) -> dict[str, Curve]:
    """Train in one layout after another, in the same processes."""
    (folder / f"cases_{world_size}.json").write_text(json.dumps(cases))
    files = [str(folder / f"{name}_{world_size}.json") for name in ("cases", "curves")]
    done = launch(folder, world_size, SCRIPT, *files)
    assert done.exit_code == 0, "\n".join(done.summary)
    found: dict[str, Curve] = json.loads(Path(files[1]).read_text())
    return found


def deviation(curve: Curve, reference: Curve, column: int) -> float:
    """The largest relative one over all steps."""
    pairs = zip(curve, reference, strict=True)
    return max(abs(ours[column] - theirs[column]) / abs(theirs[column]) for ours, theirs in pairs)
