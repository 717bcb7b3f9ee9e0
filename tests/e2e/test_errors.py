"""The likeliest mistakes: one short message with the culprit's name, the right exit code, nothing saved harmed."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_task import TinyTask

CONFIG_ERROR, USAGE_ERROR, ERROR, INTERRUPTED = 78, 2, 1, 130
LARGEST_MESSAGE = 12  # lines


def assert_message(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) <= LARGEST_MESSAGE, done.stderr
    for word in words:
        assert re.search(word, done.stderr), f"{word!r} is not in: {done.stderr}"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def fingerprint(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--config", "nowhere.yaml"), CONFIG_ERROR, ["nowhere.yaml"]),
        (("--epochs", "many"), USAGE_ERROR, ["epochs", "many"]),
        (("--pre", "1"), USAGE_ERROR, ["ambiguous", "--predict_data"]),
        (("--run_mode", "trian"), USAGE_ERROR, ["trian", "finetune"]),
        (("--train_dataset_dir", "nowhere.mindrecord"), None, [r"nowhere\.mindrecord"]),
        (("--load_checkpoint", "nowhere"), None, ["nowhere"]),
        (("--model.model_config.num_layer", "2"), CONFIG_ERROR, ["num_layer", "num_layers"]),
        (("--model.model_config.num_layers", "two"), CONFIG_ERROR, ["num_layers", "two"]),
        (("--model.model_config.vocab_size", "40"), ERROR, [r"data\.mindrecord", "record", "40|39"]),
        (("--model.model_config.seq_length", "32"), ERROR, ["17", "seq_length"]),
        (("--train_dataset.input_columns", '["input_id"]'), ERROR, ["input_id'", "input_ids"]),
        (("--lr_schedule.learning_rate", "1e30"), ERROR, ["step [0-9]+: the loss is"]),
        (("--device_target", "GPU"), ERROR, ["CUDA"]),
        (("--run_mode", "predict"), CONFIG_ERROR, ["load_checkpoint", "predict_data"]),
        (("--run_mode", "predict", "--predict_data", "hello", "--load_checkpoint", "."), ERROR, ["tokenizer"]),
        (("--runner_config.batch_size", "64"), ERROR, ["20 samples", "64", "batch_size"]),
        (("--model.model_config.num_heads", "5"), None, ["num_heads 5"]),
        (
            ("--model.model_config.pet_config", '{"pet_type": "lora", "target_modules": ".*"}'),
            CONFIG_ERROR,
            ["target_modules matches lm_head"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_named(tiny: TinyTask, arguments: tuple[str, ...], code: int | None, words: list[str]) -> None:
    done = tiny.run(*arguments)
    assert_message(done, done.returncode if code is None else code, *words)
    assert done.returncode != 0


def test_an_unknown_key_is_found_with_line_and_column(tiny: TinyTask) -> None:
    edit(tiny.folder / "config.yaml", "max_grad_norm", "max_gradnorm")
    edit(tiny.folder / "config.yaml", "    num_layers: 2", "    num_layers: two")
    done = tiny.run()
    assert_message(
        done, CONFIG_ERROR, r"config\.yaml:8:\d+", "max_gradnorm", "max_grad_norm", r"config\.yaml:\d+:\d+.*num_layers"
    )


def test_a_truncated_dataset_is_named(tiny: TinyTask) -> None:
    path = tiny.folder / "data.mindrecord"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 64)
    assert_message(tiny.run(), ERROR, r"data\.mindrecord")


def test_a_file_that_is_no_dataset_is_named(tiny: TinyTask) -> None:
    (tiny.folder / "data.mindrecord").write_bytes(b"this is not a MindRecord file at all" * 10)
    assert_message(tiny.run(), ERROR, r"data\.mindrecord")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "header": lambda data: b"\xff" * 8 + data[8:],
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_named(tiny: TinyTask, damage: str) -> None:
    assert tiny.run("--epochs", "1").returncode == 0
    (file,) = (tiny.folder / "output/checkpoint/iteration_00000010").glob("*-model-*.safetensors")
    weights = tiny.folder / "weights.safetensors"
    weights.write_bytes(DAMAGES[damage](file.read_bytes()))
    saved = fingerprint(tiny.folder / "output/checkpoint")
    done = tiny.run("--load_checkpoint", "weights.safetensors", "--resume_training", "False")
    assert_message(done, ERROR, r"weights\.safetensors")
    assert fingerprint(tiny.folder / "output/checkpoint") == saved


def test_weights_of_another_shape_are_named(tiny: TinyTask) -> None:
    assert tiny.run("--epochs", "1").returncode == 0
    done = tiny.run("--load_checkpoint", "output/checkpoint", "--model.model_config.intermediate_size", "64")
    assert_message(done, ERROR, r"gate_proj|up_proj|down_proj", "48", "64", "intermediate_size")


def test_a_full_disk_leaves_the_last_checkpoint_loadable(tiny: TinyTask) -> None:
    assert tiny.run("--epochs", "1").returncode == 0
    saved = fingerprint(tiny.folder / "output/checkpoint")
    # A limit on file size fails writes as a full disk does; a checkpoint's tensors are far above 20 blocks of 1 KiB.
    command = " ".join(f"'{word}'" for word in tiny.command("--epochs", "2", "--resume_training", "True"))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 20; exec {command}"],
        cwd=tiny.folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert_message(done, ERROR, "cannot be saved|cannot write")
    assert fingerprint(tiny.folder / "output/checkpoint") == saved
    assert tiny.run("--epochs", "2", "--resume_training", "True").returncode == 0


def test_ctrl_c_ends_quietly_and_the_run_can_go_on(tiny: TinyTask) -> None:
    process = tiny.start(
        "--epochs", "500", "--callbacks", '[{"type": "CheckpointMonitor", "save_checkpoint_steps": 1}]'
    )
    try:
        deadline = time.monotonic() + 120
        while not list((tiny.folder / "output/checkpoint").glob("iteration_*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in stderr
    assert not list((tiny.folder / "output/checkpoint").glob(".*"))
    step = max(int(path.name.split("_")[1]) for path in (tiny.folder / "output/checkpoint").iterdir())
    resumed = tiny.run("--epochs", str(step // 10 + 1), "--resume_training", "True")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming after step {step}" in resumed.stdout


def test_debug_shows_the_traceback(tiny: TinyTask) -> None:
    done = tiny.run("--load_checkpoint", "nowhere", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
