"""Every change of a checkpoint's files is found, and named."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from checkpoint_states import assert_intact, state
from checkpoint_trials import damage_and_read
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from runformer.checkpoint import CheckpointStore, Keep, TrainingState, WeightSource, find_resume, open_checkpoint, share
from runformer.checkpoint.foreign.safetensors_file import TensorFile
from runformer.config.task import LoadOptions, ModelOptions
from runformer.errors import CheckpointError
from runformer.models.part import Box

OPTIONS = ModelOptions(512, 112, 144, 2, 14, 2, 8, 64)
MODEL = "tiny-model-0000000-0000001.safetensors"
FILES = ("metadata.json", "common.json", MODEL, "tiny-opt-0000000-0000001.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with chunks of 64 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(share, "CHUNK_BYTES", 64)
        return CheckpointStore(tmp_path_factory.mktemp("whole"), "tiny", Keep(1)).save(state(8))


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    assert checkpoint.common == {"step": 8, "samples": 32}
    for name in checkpoint:
        assert checkpoint[name] is not None


def message_of_reading(path: Path) -> str:
    """The error of reading everything, which is that of verifying."""
    with pytest.raises(CheckpointError) as reading:
        read_all(path)
    with pytest.raises(CheckpointError) as verifying:
        open_checkpoint(path).verify()
    assert reading.value.hint is not None
    assert verifying.value.hint is not None
    return reading.value.message


def changed_copy(whole: Path, change: Callable[[Path], None], name: str) -> Path:
    copy = whole.with_name("changed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    change(copy / name)
    return copy


@settings(max_examples=300, deadline=None)
@given(data=st.data(), name=st.sampled_from(FILES), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(whole: Path, data: st.DataObject, name: str, bit: int) -> None:
    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << bit
        file.write_bytes(content)

    assert name in message_of_reading(changed_copy(whole, flip, name))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(FILES))
def test_a_changed_length_is_found(whole: Path, data: st.DataObject, name: str) -> None:
    def resize(file: Path) -> None:
        length = file.stat().st_size
        os.truncate(file, data.draw(st.integers(0, length + 200).filter(lambda size: size != length)))

    assert name in message_of_reading(changed_copy(whole, resize, name))


def test_the_place_of_damage_is_named(whole: Path) -> None:
    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[-10] ^= 1  # in b, the last tensor, six bytes long, or in a.weight before it
        file.write_bytes(content)

    last_chunk = ((whole / MODEL).stat().st_size - 1) // 64
    message = message_of_reading(changed_copy(whole, flip, MODEL))
    assert message.endswith(f"{MODEL}: damaged in chunk {last_chunk}, where a.weight, b should be")


def test_a_truncated_file_names_what_is_lost(whole: Path) -> None:
    copy = changed_copy(whole, lambda file: os.truncate(file, file.stat().st_size - 2), MODEL)
    size = (whole / MODEL).stat().st_size
    assert message_of_reading(copy).endswith(f"{size - 2} bytes long, but {size} were written, where b should be")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_last_byte_is_found(whole: Path, name: str) -> None:
    assert name in message_of_reading(
        changed_copy(whole, lambda file: os.truncate(file, file.stat().st_size - 1), name)
    )


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(whole: Path, name: str) -> None:
    assert name in message_of_reading(changed_copy(whole, Path.unlink, name))


def test_a_file_of_another_checkpoint_is_found(whole: Path, tmp_path: Path) -> None:
    other = CheckpointStore(tmp_path, "tiny", Keep(1)).save(state(9))
    for name in FILES[1:]:
        copy = changed_copy(whole, lambda file: shutil.copy(other / file.name, file), name)
        assert name in message_of_reading(copy)


def resign(content: dict[str, Any]) -> str:
    """A manifest's text with a fitting checksum, as someone who wants to mislead would write it."""
    del content["checksum"]
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
    return json.dumps(content | {"checksum": checksum}, sort_keys=True) + "\n"


def edited(*path: str | int, value: Any) -> Callable[[Path], None]:
    def edit(file: Path) -> None:
        content = json.loads(file.read_text())
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        file.write_text(resign(content))

    return edit


@pytest.mark.parametrize("trials", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_damage_of_any_kind_is_found_and_named(whole: Path, trials: int) -> None:
    for kind, counts in damage_and_read(whole, trials).items():
        assert counts == [trials // 5] * 3, kind


def test_how_much_is_compared_is_for_the_reader_to_say(tmp_path: Path) -> None:
    """Of 100 chunks every 16th and the last one are samples; lengths always are compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(share, "CHUNK_BYTES", 64)
        tensor = {"a": torch.zeros(64 * 100 // 4)}
        path = CheckpointStore(tmp_path, "tiny", Keep(1)).save(TrainingState.whole(tensor, {}, {"step": 8}))
    file = path / MODEL
    whole, found = file.read_bytes(), {"full": 0, "sample": 0, "none": 0}
    chunks = -(-len(whole) // 64)
    for chunk in range(chunks):
        damaged = bytearray(whole)
        damaged[min(len(whole) - 1, 64 * chunk + 63)] ^= 1
        file.write_bytes(damaged)
        for level in found:
            with contextlib.suppress(CheckpointError):
                found[level] += open_checkpoint(path, level)["a"].numel() == 0  # type: ignore[arg-type]
                found[level] -= 1
            found[level] += 1
    assert found == {"full": chunks, "sample": -(-chunks // 16) + ((chunks - 1) % 16 != 0), "none": 0}
    file.write_bytes(whole[:-1])
    for level in found:
        with pytest.raises(CheckpointError, match="bytes long"):
            open_checkpoint(path, level)["a"]  # type: ignore[arg-type]


DEAD = 99_999_999  # above the highest number that Linux gives a process
SLICE = ("tensors", "b", "slices", 0)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (edited("format_version", value=2), "format version 2"),
        (edited("format", value="other"), "not the manifest"),
        (edited("chunk_bytes", value=1 << 40), "chunks of 1099511627776 bytes"),
        (edited("chunk_bytes", value=0), "chunks of 0 bytes"),
        (edited("files", "../escape", value={"chunks": [], "size": 0}), "'../escape' is not a plain one"),
        (edited("files", "/etc/passwd", value={"chunks": [], "size": 0}), "'/etc/passwd' is not a plain one"),
        (edited("files", MODEL, "size", value=1 << 60), "hashes for 1152921504606846976 bytes"),
        (edited("files", MODEL, "size", value=True), "True is not a count"),
        (edited("files", MODEL, "chunks", value=["no"] * 10), "tiny-model"),
        (edited(*SLICE, "file", value="../escape"), "'../escape', which is not listed"),
        (edited(*SLICE, "bytes", value=[0, 1 << 50]), "bytes 0 to 1125899906842624 are not in"),
        (edited(*SLICE, "bytes", value=[8, 4]), "bytes 8 to 4"),
        (edited(*SLICE, "offset", value=[1]), r"a slice of \(3,\) at \(1,\) is not in \(3,\)"),
        (edited("tensors", "b", "slices", value=[]), "its slices hold 0 of 3 elements"),
        (edited("tensors", "b", "shape", value=[1 << 40]), "its slices hold 3 of 1099511627776 elements"),
        (edited("tensors", "b", "dtype", value="F64"), r"6 bytes for \(3,\)"),
        (edited("tensors", "b", "dtype", value="C64"), "C64"),
        (edited("tensors", value=[]), "not a valid manifest"),
    ],
)
def test_a_manifest_that_lies_is_refused(whole: Path, edit: Callable[[Path], None], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        open_checkpoint(changed_copy(whole, edit, "metadata.json"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from([MODEL, "b", "slices", "bytes"]) | st.text(), inner)
    ),
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(["chunk_bytes", "files", "tensors"]), JSON))
def test_any_manifest_is_read_or_refused(whole: Path, change: dict[str, Any]) -> None:
    def edit(file: Path) -> None:
        file.write_text(resign(json.loads(file.read_text()) | change))

    with contextlib.suppress(CheckpointError):
        open_checkpoint(changed_copy(whole, edit, "metadata.json")).verify()


def test_the_newest_intact_one_is_taken_and_the_damaged_are_named(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path, "tiny", Keep(5))
    for step in (1, 2, 3):
        checkpoints.save(state(step))
    os.truncate(tmp_path / "iteration_00000003" / MODEL, 100)
    (tmp_path / "iteration_00000002" / "metadata.json").write_text("{")
    source = read_newest(tmp_path)
    assert source.common == {"step": 1, "samples": 4}
    assert len(source.notices) == 2
    assert "iteration_00000003" in source.notices[0]
    assert "iteration_00000002" in source.notices[1]


def read_newest(root: Path) -> WeightSource:
    """The newest checkpoint of which all can be read."""

    def take(source: WeightSource) -> WeightSource:
        assert all(source.tensors[name] is not None for name in source.tensors)
        return source

    return find_resume(LoadOptions(), root, OPTIONS, take)


def test_all_damaged_or_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file or folder"):
        read_newest(tmp_path / "nothing")
    for step in (1, 2):
        CheckpointStore(tmp_path, "tiny", Keep(5)).save(state(step))
        (tmp_path / f"iteration_0000000{step}" / "common.json").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint is intact:.*common\.json: cannot be read"):
        read_newest(tmp_path)


def test_a_checkpoint_that_stepped_aside_counts_until_its_place_is_taken(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path, "tiny", Keep(5))
    checkpoints.save(state(8)).rename(tmp_path / f".iteration_00000008.old-{DEAD}")
    assert assert_intact(tmp_path) == 8
    with pytest.raises(CheckpointError):
        checkpoints.save(TrainingState.whole({"z": torch.zeros(1, dtype=torch.complex64)}, {}, {"step": 9}))
    assert assert_intact(tmp_path) == 8
    checkpoints.save(state(9))
    checkpoints.save(state(8))
    assert assert_intact(tmp_path) == 9


HEADER = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def write_header(path: Path, header: bytes, data: bytes = bytes(24), length: int | None = None) -> Path:
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)
    return path


def read_file(path: Path) -> None:
    """Read all, or refuse; no other exception may come out."""
    with contextlib.suppress(CheckpointError):
        file = TensorFile(path)
        for name in file.names:
            assert file.read(name, Box.of(file.shape(name))).shape == torch.Size(file.shape(name))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1) | st.integers(0, 200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, length: int) -> None:
    read_file(write_header(tmp_path_factory.getbasetemp() / "fuzz.safetensors", data, b"", length))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "more"]), JSON | st.just([0, 2**63])))
def test_any_header_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, change: dict[str, Any]) -> None:
    header = json.dumps({"a": HEADER["a"] | change}).encode()
    read_file(write_header(tmp_path_factory.getbasetemp() / "fuzz.safetensors", header))


@pytest.mark.parametrize("length", [0, 7, 8, 60, 100])
def test_a_truncated_safetensors_file_is_named(tmp_path: Path, length: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(30)}, file)
    os.truncate(file, length)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a whole safetensors file"):
        TensorFile(file)


def test_a_type_that_cannot_be_trained_from_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(4).to(torch.float8_e4m3fn)}, file)
    with pytest.raises(CheckpointError, match=r"the tensor a has the type F8_E4M3, which cannot be read") as error:
        TensorFile(file).read("a", Box.of((2, 3)))
    assert "quantised" in str(error.value)
