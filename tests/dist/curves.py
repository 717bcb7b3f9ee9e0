"""What training runs leave, and whether two runs are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from runformer.checkpoint import open_checkpoint


def rows(output: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in map(json.loads, (output / "training.jsonl").read_text().splitlines())}


def assert_same_curve(output: Path, reference: Path, tolerance: float = 1e-6) -> None:
    ours, theirs = rows(output), rows(reference)
    assert list(ours) == list(theirs)
    for step, row in theirs.items():
        assert ours[step]["loss"] == pytest.approx(row["loss"], rel=tolerance), step
        assert ours[step]["grad_norm"] == pytest.approx(row["grad_norm"], rel=5 * tolerance), step
        assert [ours[step][key] for key in ("epoch", "lr", "tokens")] == [row[key] for key in ("epoch", "lr", "tokens")]


def assert_same_weights(output: Path, reference: Path, tolerance: float = 1e-5) -> None:
    ours, theirs = (newest_weights(folder) for folder in (output, reference))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() <= tolerance, name


def newest_weights(output: Path) -> dict[str, torch.Tensor]:
    newest = max((output / "checkpoint").iterdir())
    checkpoint = open_checkpoint(newest)
    return {name: checkpoint[name] for name in checkpoint if not name.startswith("exp_avg")}
