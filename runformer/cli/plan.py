"""``python -m runformer plan --config X.yaml …``: what a task would do; ``run_mindformer.py --dry_run True``, too."""

from __future__ import annotations

from collections.abc import Sequence

from runformer.cli import main as run


def main(argv: Sequence[str]) -> int:
    """Plan the task that the arguments describe, which are those of ``run_mindformer.py``; return the exit code."""
    return run.main([*argv, "--dry_run", "True"])
