"""Two ranks of the original against two of ours, under ``parallel.reference_semantics``."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from curves import newest_weights, rows
from launching import REPOSITORY, finish, launch, start
from safetensors.torch import load_file
from torch import nn

from runformer.models.build import build_model
from runformer.models.decoder import CausalLM
from runformer.models.names import to_mindformers


def oracle_command(folder: Path) -> list[str]:
    """The task's part of the published launcher command."""
    _, _, order, *_ = shlex.split((folder / "command.txt").read_text())
    return shlex.split(order)


def test_the_original_on_two_ranks(oracle_dir: Path, tmp_path: Path) -> None:
    """Its own command through the launcher script; only the switch to its semantics is added."""
    folder = Path(shutil.copytree(oracle_dir / "dp2_mean", tmp_path / "case"))
    words = shlex.split((folder / "command.txt").read_text())
    words[1] = str(REPOSITORY / words[1])
    words[2] += " --parallel.reference_semantics True"
    done = finish(start(words, folder, {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}), folder)
    assert done.exit_code == 0, done.err
    expected = {row["step"]: row for row in map(json.loads, (folder / "expected.jsonl").read_text().splitlines())}
    actual = rows(folder / "output")
    assert list(actual) == list(expected)
    for step, row in expected.items():
        assert actual[step]["loss"] == pytest.approx(row["loss"], rel=1e-5)
        assert actual[step]["grad_norm"] == pytest.approx(row["grad_norm"], rel=5e-5)
        assert actual[step]["lr"] == pytest.approx(row["lr"], rel=1e-6)
    for rank in range(2):
        printed = re.findall(r"loss:\[([\d.]+)/", (folder / f"output/msrun_log/worker_{rank}.log").read_text())
        assert printed == [f"{row['loss_rank'][rank]:.3f}" for row in expected.values()]
    final = load_file(folder / "final.safetensors")
    ours = {to_mindformers(name): tensor for name, tensor in newest_weights(folder / "output").items()}
    assert ours.keys() == final.keys()
    for name, tensor in final.items():
        assert (ours[name] - tensor).abs().max() <= 1e-5, name


def test_the_original_sums_gradients_unless_told_otherwise(oracle_dir: Path, tmp_path: Path) -> None:
    """Against a plain loop over both ranks' rows, since that run of the original is not at hand."""
    folder = Path(shutil.copytree(oracle_dir / "dp2_mean", tmp_path / "case"))
    words = [*oracle_command(folder), "--parallel.reference_semantics", "True", "--parallel.gradients_mean", "False"]
    done = launch(folder, 2, *words, "--epochs", "1")
    assert done.exit_code == 0, done.err
    expected = plain_loop(folder, steps=8, summed=True)
    averaged = plain_loop(folder, steps=8, summed=False)
    norms = [row["grad_norm"] for row in rows(folder / "output").values()]
    assert norms == pytest.approx(expected, rel=5e-5)
    assert expected[0] == pytest.approx(2 * averaged[0], rel=1e-6)


def plain_loop(folder: Path, steps: int, *, summed: bool) -> list[float]:
    """Gradient norms of two ranks' steps, each rank's loss normalised by its own tokens."""
    model = oracle_model(folder)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    lines = (folder / "data.jsonl").read_text().splitlines()
    tokens_BT = torch.tensor([json.loads(line)["input_ids"] for line in lines])
    rates = [row["lr"] for row in rows(folder / "output").values()]
    norms = []
    for step in range(steps):
        batch_BT = tokens_BT[8 * step : 8 * step + 8]
        for rank in range(2):
            loss = mean_loss(model, batch_BT[rank::2]) / (1 if summed else 2)
            loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        optimizer.zero_grad()
    return norms


def mean_loss(model: CausalLM, tokens_BT: torch.Tensor) -> torch.Tensor:
    inputs_BL, labels_BL = tokens_BT[:, :-1], tokens_BT[:, 1:]
    keep_BL = inputs_BL != 0
    causal = torch.ones(48, 48, dtype=torch.bool).tril()
    mask = (causal & keep_BL[:, None, None, :]) | torch.eye(48, dtype=torch.bool)
    logits = model(inputs_BL, mask=mask) @ model.head_weight_VD.T
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels_BL.flatten(), reduction="none")
    return (losses * keep_BL.flatten()).sum() / keep_BL.sum()


def oracle_model(folder: Path) -> CausalLM:
    from runformer.config import load_task
    from runformer.models.families import resolve_options

    here = Path.cwd()
    os.chdir(folder)
    try:
        task = load_task(["--config", "config.yaml", "--use_parallel", "False", "--load_checkpoint", "init"])
    finally:
        os.chdir(here)
    model = build_model(resolve_options(task.model), task.model.precision, torch.device("cpu"), None)
    saved = load_file(folder / "init/model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(saved[to_mindformers(name)])
    return model
