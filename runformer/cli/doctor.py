"""``python -m runformer doctor``: look over this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from runformer.doctor import Finding, examine

_WIDTH = 14


def main(argv: Sequence[str]) -> int:
    """Print what is found; 0 without problems, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m runformer doctor", description="Look over this machine before a job is started on it."
    )
    parser.add_argument("--output_dir", type=Path, default=Path(), help="where runs would write (here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a finding")
    values = parser.parse_args(argv)
    problems = 0
    for finding in examine(values.output_dir):
        print(json.dumps(asdict(finding)) if values.json else _line(finding), flush=True)
        problems += finding.state == "problem"
    return 1 if problems else 0


def _line(finding: Finding) -> str:
    advice = f"\n{'':{_WIDTH + 10}}→ {finding.advice}" if finding.advice else ""
    return f"{finding.state:<8}  {finding.topic:<{_WIDTH}}{finding.text}{advice}"
