"""Saving checkpoints: what goes in comes out, and nothing that goes wrong harms an older one."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_states import assert_intact, bits, state
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from runformer.checkpoint import (
    CheckpointStore,
    Keep,
    TrainingState,
    complete_checkpoints,
    newest_checkpoint,
    open_checkpoint,
    share,
    store,
    writer,
)
from runformer.errors import CheckpointError, ConfigError

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    raw = torch.randint(0, 256, (*shape, 8), dtype=torch.uint8, generator=generator)
    tensor = raw.view(torch.float64)[..., 0] if draw(st.booleans()) else raw.sum(-1)
    return tensor.to(draw(st.sampled_from(DTYPES))).transpose(0, -1) if shape else tensor.to(torch.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"), tensors(), max_size=5
    ),
    st.integers(1, 200),
)
def test_tensors_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, model: Any, chunk_bytes: int) -> None:
    root = tmp_path_factory.mktemp("round")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(share, "CHUNK_BYTES", chunk_bytes)
        path = CheckpointStore(root, "tiny", Keep(1)).save(TrainingState.whole(model, {}, {"step": 1}))
    checkpoint = open_checkpoint(path)
    plain = load_file(path / "tiny-model-0000000-0000001.safetensors")
    assert set(checkpoint) == set(plain) == set(model)
    for name, tensor in model.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        for read in (checkpoint[name], plain[name]):
            assert read.dtype == tensor.dtype
            assert read.shape == tensor.shape
            assert bits(read) == bits(tensor)


def test_the_files_are_those_that_the_design_names(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path / "output" / "checkpoint", "qwen", Keep(3)).save(state(120))
    assert path.name == "iteration_00000120"
    assert sorted(file.name for file in path.iterdir()) == [
        "common.json",
        "metadata.json",
        "qwen-model-0000000-0000001.safetensors",
        "qwen-opt-0000000-0000001.safetensors",
    ]
    with safe_open(path / "qwen-model-0000000-0000001.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # what transformers asks for


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def noting_fsync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        sync(descriptor)

    def noting_rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "rename", noting_rename)
    path = CheckpointStore(tmp_path, "tiny", Keep(1)).save(state(8))
    commit = done.index("rename")
    assert sorted(done[: commit - 1]) == sorted(file.name for file in path.iterdir())
    assert done[commit - 1].startswith(".iteration_00000008.tmp-")
    assert done[commit + 1 :] == [tmp_path.name]


def test_common_comes_back(tmp_path: Path) -> None:
    common = {"step": 7, "loss_scale": {"scale": 65536.0}, "learning_rate": 0.1 + 0.2, "text": "é\n", "none": None}
    path = CheckpointStore(tmp_path, "tiny", Keep(1)).save(TrainingState.whole({}, {}, common))
    assert open_checkpoint(path).common == common


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path, "tiny", Keep(2))
    for step in (8, 16, 24, 32):
        checkpoints.save(state(step))
    assert list(complete_checkpoints(checkpoints.root)) == [24, 32]
    assert newest_checkpoint(checkpoints.root) == tmp_path / "iteration_00000032"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["iteration_00000024", "iteration_00000032"]


def test_pruning_spares_later_steps_of_another_run_and_what_was_just_saved(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, "tiny", Keep(5)).save(state(100))
    checkpoints = CheckpointStore(tmp_path, "tiny", Keep(1))
    checkpoints.save(state(8))
    checkpoints.save(state(16))
    assert list(complete_checkpoints(checkpoints.root)) == [16, 100]


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path, "old", Keep(1))
    checkpoints.save(TrainingState.whole({"a": torch.zeros(2)}, {}, {"step": 8}))
    CheckpointStore(tmp_path, "new", Keep(1)).save(state(8))
    assert assert_intact(tmp_path) == 8
    assert [entry.name for entry in tmp_path.iterdir()] == ["iteration_00000008"]


def test_an_old_checkpoint_that_cannot_be_removed_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    checkpoints = CheckpointStore(tmp_path, "tiny", Keep(1))
    checkpoints.save(state(1))
    monkeypatch.setattr(store, "remove_directory", refuse)
    with caplog.at_level(logging.WARNING):
        checkpoints.save(state(2))
    assert "iteration_00000001: this old checkpoint cannot be removed" in caplog.text
    assert assert_intact(tmp_path) == 2


@pytest.mark.parametrize(("prefix", "keep"), [("a/b", 1), ("..", 1), ("", 1), ("tiny", 0)])
def test_settings_that_cannot_work_are_refused(tmp_path: Path, prefix: str, keep: int) -> None:
    with pytest.raises(ConfigError, match="CheckpointMonitor"):
        CheckpointStore(tmp_path, prefix, Keep(keep))


def test_a_tensor_that_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path, "tiny", Keep(1))
    checkpoints.save(state(1))
    with pytest.raises(CheckpointError, match=r"the tensor z has the type torch\.complex64"):
        checkpoints.save(TrainingState.whole({"z": torch.zeros(1, dtype=torch.complex64)}, {}, {"step": 2}))
    assert [entry.name for entry in tmp_path.iterdir()] == ["iteration_00000001"]


def test_a_file_size_limit_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path, "tiny", Keep(1))
    checkpoints.save(state(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step 2 cannot be saved: File too large; the newest .*00000001"):
            checkpoints.save(state(2, size=10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert assert_intact(tmp_path) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["iteration_00000001"]


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of one mebibyte; only root can make one."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        checkpoints = CheckpointStore(disk, "tiny", Keep(1))
        checkpoints.save(state(1))
        with pytest.raises(
            CheckpointError, match=r"No space left on device; the newest checkpoint is still .*00000001"
        ):
            checkpoints.save(state(2, size=40_000))
        assert assert_intact(disk) == 1
        checkpoints.save(state(3))  # there is room again: what was written of step 2 is gone
        assert [entry.name for entry in disk.iterdir()] == ["iteration_00000003"]


def test_a_read_only_disk_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        checkpoints = CheckpointStore(disk, "tiny", Keep(1))
        checkpoints.save(state(1))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(CheckpointError, match="Read-only file system; the newest checkpoint is still"):
            checkpoints.save(state(2))
        assert assert_intact(disk) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file, where the output directory should be")
    with pytest.raises(CheckpointError, match="Not a directory; there is no older checkpoint"):
        CheckpointStore(tmp_path / "output" / "checkpoint", "tiny", Keep(1)).save(state(1))


def test_a_folder_that_vanishes_while_saving_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "checkpoint"
    checkpoints = CheckpointStore(root, "tiny", Keep(1))

    def vanish(tensor: torch.Tensor) -> memoryview:
        if root.is_dir():
            root.rename(root.with_name("moved"))
        return bytes_of(tensor)

    bytes_of = writer._bytes_of
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_bytes_of", vanish)
        with pytest.raises(CheckpointError, match="No such file or directory; there is no older checkpoint"):
            checkpoints.save(state(1))
    checkpoints.save(state(2))
    assert assert_intact(root) == 2
