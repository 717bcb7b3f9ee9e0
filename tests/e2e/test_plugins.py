"""Plug-ins with the real command: one of each kind in one run, resumed, stopped, refused; the documented ones too."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_task import TinyTask

from runformer.data.mindrecord import Column, MindRecordWriter

PARTS = {
    "model": {"model_config": {"type": "MistralConfig"}, "arch": {"type": "MistralForCausalLM"}},
    "train_dataset": {"data_loader": {"handler": [{"type": "MaskPrompt", "end": 9}]}},
    "optimizer": {"type": "Lion", "betas": [0.9, 0.95], "weight_decay": 0.1},
    "lr_schedule": {"type": "InverseSquareRootLR", "learning_rate": 3e-4, "warmup_steps": 2},
    "callbacks": [
        {"type": "MFLossMonitor"},
        {"type": "CheckpointMonitor", "prefix": "tiny", "save_checkpoint_steps": 3, "keep_checkpoint_max": 10},
        {"type": "StopWhenLossBelow", "loss": 0.1},
    ],
}
WATCH = """
import json
from pathlib import Path
from runformer import plugins

@plugins.callback("Watch")
class Watch:
    def __init__(self, stop_at=None, fail_at=None):
        self.stop_at, self.fail_at, self.lines = stop_at, fail_at, []

    def on_train_begin(self, run):
        facts = [run.steps_done, run.total_steps, run.steps_per_epoch, run.batch_size, run.parameters]
        self.lines.append(["begin", *facts])

    def on_step_end(self, step):
        self.lines.append([step.step, step.loss, step.lr, step.grad_norm])
        if step.step == self.fail_at:
            raise KeyError("lost")
        return plugins.STOP if step.step == self.stop_at else None

    def on_train_end(self, step):
        Path("watched.json").write_text(json.dumps(self.lines + [["end", step.step]]))
"""


def write_task(tiny: TinyTask, changes: Mapping[str, Any]) -> None:
    tree = yaml.safe_load((tiny.folder / "config.yaml").read_text())
    model = tree["model"]["model_config"] | changes.get("model", {}).get("model_config", {})
    loader = tree["train_dataset"]["data_loader"] | changes.get("train_dataset", {}).get("data_loader", {})
    tree |= changes
    tree["model"] = changes.get("model", {}) | {"model_config": model}
    tree["train_dataset"] = {"data_loader": loader, "input_columns": ["input_ids", "labels"], "drop_remainder": True}
    tree["train_dataset_task"]["dataset_config"] = tree["train_dataset"]
    (tiny.folder / "config.yaml").write_text(yaml.safe_dump(tree))


def put(tiny: TinyTask, name: str, text: str) -> None:
    path = tiny.folder / name
    path.parent.mkdir(exist_ok=True, mode=0o755)
    path.write_text(text)
    path.chmod(0o644)


@pytest.fixture
def mistral(tiny: TinyTask) -> tuple[TinyTask, tuple[str, ...]]:
    """The task with all plug-ins of research/mistral, and the arguments that find them."""
    write_task(tiny, PARTS)
    source = tiny.repository / "research/mistral"
    for name in ("mistral.py", "mistral_training.py"):
        put(tiny, f"plug/{name}", (source / name).read_text())
    return tiny, ("--register_path", "plug")


def saved_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(checkpoint.glob("*.safetensors")) for name, t in load_file(file).items()}


def test_every_kind_in_one_run_and_a_resume_that_is_bit_for_bit(mistral: tuple[TinyTask, tuple[str, ...]]) -> None:
    tiny, arguments = mistral
    whole = tiny.run(*arguments, "--output_dir", "whole")
    assert whole.returncode == 0, whole.stderr
    assert (
        "plug-ins: plug/mistral.py (model family mistral), plug/mistral_training.py (optimizer Lion, " in whole.stdout
    )
    rows = tiny.rows("whole")
    assert len(rows) == 20
    assert [row["lr"] for row in rows[:3]] == [1.5e-4, 3e-4, 3e-4 * (2 / 3) ** 0.5]
    shutil.copytree(tiny.folder / "whole", tiny.folder / "output")
    for folder in sorted((tiny.folder / "output/checkpoint").iterdir())[1:]:
        shutil.rmtree(folder)
    resumed = tiny.run(*arguments, "--resume_training", "True")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 3" in resumed.stdout
    assert "not loaded" not in resumed.stdout
    curve = ("step", "loss", "grad_norm", "lr")
    assert [[row[key] for key in curve] for row in tiny.rows()] == [[row[key] for key in curve] for row in rows]
    ends = [saved_tensors(tiny.folder / name / "checkpoint/iteration_00000020") for name in ("whole", "output")]
    assert "momentum.model.embed_tokens.weight" in ends[0]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    other = tiny.run(*arguments, "--resume_training", "True", "--epochs", "3", "--optimizer", "{type: AdamW}")
    assert other.returncode == 1
    assert "the checkpoint is of a run with the optimizer Lion, this run has AdamW" in other.stderr


def test_weights_of_a_run_with_a_plugin_optimizer_start_another(mistral: tuple[TinyTask, tuple[str, ...]]) -> None:
    tiny, arguments = mistral
    assert tiny.run(*arguments, "--epochs", "1").returncode == 0
    weights = ("--load_checkpoint", "output/checkpoint", "--output_dir", "next", "--optimizer", "{type: AdamW}")
    following = tiny.run(*arguments, *weights)
    assert following.returncode == 0, following.stderr
    assert "not loaded" not in following.stdout


def test_the_handler_decides_what_is_learnt(mistral: tuple[TinyTask, tuple[str, ...]]) -> None:
    tiny, arguments = mistral
    losses = []
    for end in ("9", "100"):
        folder = f"end_{end}"
        done = tiny.run(*arguments, "--output_dir", folder, "--train_dataset.data_loader.handler.0.end", end)
        assert done.returncode == 0, done.stderr
        losses.append(tiny.rows(folder)[0]["loss"])
    assert losses[0] != losses[1]


def test_a_callback_stops_a_run_which_saves_and_can_go_on(tiny: TinyTask) -> None:
    put(tiny, "plug/watching.py", WATCH)
    arguments = ("--register_path", "plug", "--callbacks")
    save = "{type: CheckpointMonitor, prefix: tiny, save_checkpoint_steps: 4}"
    stopped = tiny.run(*arguments, f"[{save}, {{type: Watch, stop_at: 6}}]")
    assert stopped.returncode == 0, stopped.stderr
    assert "the callback Watch stops the run after step 6 of 20" in stopped.stdout
    assert sorted(path.name[-2:] for path in (tiny.folder / "output/checkpoint").iterdir()) == ["04", "06"]
    watched = json.loads((tiny.folder / "watched.json").read_text())
    rows = tiny.rows()
    assert watched[0][:5] == ["begin", 0, 20, 10, 2]
    assert watched[0][5] == sum(t.numel() for t in load_file(next(tiny.folder.glob("**/*04/*model*"))).values())
    assert watched[1:-1] == [[row[key] for key in ("step", "loss", "lr", "grad_norm")] for row in rows]
    assert watched[-1] == ["end", 6]
    resumed = tiny.run(*arguments, f"[{save}, {{type: Watch}}]", "--resume_training", "True")
    assert resumed.returncode == 0, resumed.stderr
    watched = json.loads((tiny.folder / "watched.json").read_text())
    assert (watched[0][1], watched[1][0], watched[-1]) == (6, 7, ["end", 20])


def test_a_callback_that_fails_ends_the_run_with_one_message(tiny: TinyTask) -> None:
    put(tiny, "plug/watching.py", WATCH)
    save = "{type: CheckpointMonitor, prefix: tiny, save_checkpoint_steps: 3}"
    done = tiny.run("--register_path", "plug", "--callbacks", f"[{save}, {{type: Watch, fail_at: 6}}]")
    assert done.returncode == 1
    assert "error: step 6: plug/watching.py:18: the callback Watch raised KeyError: 'lost'" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tiny.folder / "output/checkpoint").iterdir()] == ["iteration_00000003"]


def test_a_folder_that_everyone_can_write_needs_the_flag(tiny: TinyTask) -> None:
    put(tiny, "plug/watching.py", WATCH)
    (tiny.folder / "plug").chmod(0o777)
    arguments = ("--register_path", "plug", "--epochs", "1", "--callbacks", "[{type: Watch}]")
    refused = tiny.run(*arguments)
    assert refused.returncode == 78
    assert "error: plug: every user of this machine can write here" in refused.stderr
    assert "--trust_remote_code True" in refused.stderr
    assert not (tiny.folder / "output").exists()
    trusted = tiny.run(*arguments, "--trust_remote_code", "True")
    assert trusted.returncode == 0, trusted.stderr


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (
            WATCH + "boom()\n",
            (),
            "plug/watching.py:23: loading this plug-in raised NameError: name 'boom' is",
        ),
        (WATCH + "import mindspore\n", (), "plug/watching.py:23: this plug-in imports mindspore"),
        (
            WATCH,
            ("--callbacks", "[{type: Wath}]"),
            "'Wath', which is not known: did you mean 'Watch'?",
        ),
        (WATCH, ("--callbacks", "[{type: Watch, stop: 1}]"), "callbacks[0].stop is not a key of the callback Watch"),
        (WATCH, ("--optimizer", "{type: X, auto_register: watching.Y}"), "there is no Y in "),
    ],
)
def test_mistakes_are_messages_before_anything_starts(
    tiny: TinyTask, text: str, arguments: tuple[str, ...], message: str
) -> None:
    put(tiny, "plug/watching.py", text)
    done = tiny.run("--register_path", "plug", *arguments)
    assert (done.returncode, done.stdout) == (78, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tiny.folder / "output").exists()


def test_the_documented_plugins_run_as_they_stand(tiny: TinyTask) -> None:
    document = (tiny.repository / "docs/plugins.md").read_text()
    codes = re.findall(r"^```python\n# (\S+)\n(.*?)^```", document, flags=re.DOTALL | re.MULTILINE)
    assert len(codes) == len(re.findall("^```python", document, flags=re.MULTILINE)) == 5
    for name, code in codes:
        put(tiny, name, code)
    (sections,) = re.findall(r"^```yaml\n(.*?)^```", document, flags=re.DOTALL | re.MULTILINE)
    write_task(tiny, yaml.safe_load(sections))
    columns = {"input_ids": Column("int32", (-1,)), "labels": Column("int32", (-1,))}
    with MindRecordWriter(tiny.folder / "ragged.mindrecord", columns) as writer:
        for length in range(1, 21):
            tokens = np.arange(1, length + 1, dtype=np.int32)
            writer.write([{"input_ids": tokens, "labels": tokens}])
    data = ("--train_dataset_dir", "ragged.mindrecord", "--model.model_config.seq_length", "12")
    done = tiny.run("--register_path", "my_plugins", *data)
    assert done.returncode == 0, done.stderr
    for part in ("optimizer Momentum", "schedule HalvingLR", "callback StopAfterMinutes", "data handler CutOrPad"):
        assert f"({part})" in done.stdout
    assert "(model family internlm)" in done.stdout
    rows = tiny.rows()
    assert [row["lr"] for row in rows] == [0.05] * 10 + [0.025] * 10
    assert f"stopped at step 20 of 20 with loss {rows[-1]['loss']:.3f}" in done.stdout
