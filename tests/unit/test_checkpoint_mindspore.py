"""MindSpore's own files, and the folders of several ranks: read as MindSpore wrote them, or refused with a word."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore_files import ckpt, strategy
from safetensors.torch import load_file, save_file
from torch import Tensor

from runformer.checkpoint import as_it_is, find_resume, find_weights, load_weights
from runformer.checkpoint.foreign.ckpt_file import CkptFile
from runformer.checkpoint.foreign.mindspore_strategy import SliceLayout, read_strategies, read_strategy
from runformer.checkpoint.foreign.rank_files import RankFiles
from runformer.config.task import LoadOptions, ModelOptions
from runformer.errors import CheckpointError, DamageError
from runformer.models.families import options_from_config, read_config
from runformer.models.part import Box

OPTIONS = ModelOptions(20, 8, 12, 2, 2, 1, 4, 16)


def whole(file: CkptFile | RankFiles, name: str) -> Tensor:
    return file.read(name, Box.of(file.shape(name)))


@pytest.mark.parametrize("name", ["all.ckpt", "train_state.ckpt"])
def test_files_that_mindspore_wrote(oracle_dir: Path, name: str) -> None:
    path = oracle_dir / "mindspore_ckpt" / name
    file, expected = CkptFile(path), np.load(path.with_name(f"{name}.npz"))
    described = json.loads((path.parent / "expected.json").read_text())[name]
    assert list(file.names) == described["order"]
    for key in file.names:
        assert list(file.shape(key)) == described["tensors"][key]["shape"]
        tensor = whole(file, key)
        raw = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(raw.numpy(), expected[key])
        assert raw.numpy().dtype == expected[key].dtype


@pytest.mark.parametrize("where", ["s.ckpt", "s.json"])
def test_slices_that_mindspore_cut(oracle_dir: Path, where: str) -> None:
    root = oracle_dir / "mindspore_strategy"
    files = {rank: [CkptFile(root / f"split/rank_{rank}/m_{rank}.ckpt")] for rank in range(4)}
    ranks, full = RankFiles(root, files, read_strategies(root / where)), CkptFile(root / "full/m.ckpt")
    assert set(ranks.names) == set(full.names)
    for name in full.names:
        assert torch.equal(whole(ranks, name), whole(full, name)), name


@st.composite
def layouts(draw: st.DrawFn) -> tuple[SliceLayout, tuple[int, ...]]:
    """A layout over a few devices, and the shape of a tensor that it cuts."""
    matrix = tuple(draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3)))
    axes = draw(st.permutations([*range(len(matrix)), -1, -1]))
    dims = draw(st.integers(1, 3))
    taken = tuple(axes[:dims])
    free = [axis for axis in range(len(matrix)) if len(matrix) - 1 - axis not in taken]
    step = math.prod(matrix[1:]) if free == [0] else 0  # the copies of each slice are so many ranks apart
    shard = draw(st.sampled_from([0, matrix[0], -1])) if step else 0
    layout = SliceLayout(matrix, taken, step, shard)
    return layout, tuple(count * draw(st.integers(1, 3)) for count in layout.cuts(dims))


@settings(max_examples=150, deadline=None)
@given(layouts(), st.data())
def test_any_layout_is_put_together(
    tmp_path_factory: pytest.TempPathFactory, cut: tuple[SliceLayout, tuple[int, ...]], data: st.DataObject
) -> None:
    layout, shape = cut
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    held = tuple(size // count for size, count in zip(shape, layout.cuts(len(shape)), strict=True))
    folder, files = tmp_path_factory.mktemp("ranks"), {}
    for rank in range(math.prod(layout.device_matrix)):
        path = folder / f"{rank}.ckpt"
        path.write_bytes(ckpt({"w": tensor[layout.box(rank, held).place]}, slice_bytes=data.draw(st.integers(8, 64))))
        files[rank] = [CkptFile(path)]
    (folder / "s.ckpt").write_bytes(strategy({"stage-0-w": layout}))
    ranks = RankFiles(folder, files, read_strategies(folder / "s.ckpt"))
    assert torch.equal(whole(ranks, "w"), tensor)
    bounds = [sorted((data.draw(st.integers(0, size)), data.draw(st.integers(0, size)))) for size in shape]
    box = Box(tuple(low for low, _ in bounds), tuple(high - low for low, high in bounds))
    assert torch.equal(ranks.read("w", box), tensor[box.place])


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.ckpt").write_bytes(ckpt({"w": torch.ones(2, 3)}))
    ranks = RankFiles(tmp_path, {0: [CkptFile(tmp_path / "0.ckpt")]}, {None: {"w": SliceLayout((2,), (0, -1))}})
    with pytest.raises(CheckpointError, match="the ranks' files hold 6 of 12 elements of w"):
        whole(ranks, "w")


CONTENT = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "s": torch.tensor(3.0)}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_under_a_checksum_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(ckpt(CONTENT, crc=True))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "flipped.ckpt"
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        file = CkptFile(path)
        # Only the word that announces the checksum itself could be hit: then it is data behind the last message.
        pytest.fail(f"read {file.names}")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(ckpt(CONTENT))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path_factory.getbasetemp() / "any.ckpt"
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        file = CkptFile(path)
        for name in file.names:
            whole(file, name)
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(CheckpointError):
        CkptFile(path)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=60)
    | st.builds(lambda a, b: a + b, st.just(strategy({"w": SliceLayout((2, 2), (1, 0))})), st.binary(max_size=8))
)
def test_any_strategy_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    for suffix in (".ckpt", ".json"):
        path = tmp_path_factory.getbasetemp() / f"any{suffix}"
        path.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            read_strategy(path)


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    with pytest.raises(CheckpointError, match=r"x\.ckpt: cannot be read: No such file"):
        CkptFile(path)
    for content in (b"", b"PK\x03\x04 a pickle of PyTorch"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.ckpt: (holds no tensor|damaged at byte|not a MindSpore)"):
            CkptFile(path)
    path.write_bytes(ckpt(CONTENT)[:-3])
    with pytest.raises(CheckpointError, match="damaged at byte"):
        CkptFile(path)
    twice = ckpt({"a": torch.ones(2)}) + ckpt({"a": torch.ones(3)})
    path.write_bytes(twice)
    with pytest.raises(DamageError, match="a is there twice"):
        CkptFile(path)


@pytest.fixture
def llama(oracle_dir: Path) -> ModelOptions:
    folder = oracle_dir / "llama_pretrain" / "init_hf"
    return options_from_config(read_config(folder), str(folder))


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("beside", [True, False])
def test_a_cut_checkpoint_of_ranks_is_one(
    oracle_dir: Path, tmp_path: Path, llama: ModelOptions, suffix: str, beside: bool
) -> None:
    """MindFormers' own checkpoint, cut over tensor 2 × data 2 ranks with the optimizer's shards, and put together."""
    theirs = oracle_dir / "llama_resume" / "checkpoint" / "rank_0" / "tiny_rank_0-1_16.safetensors"
    tensors = load_file(theirs)
    layouts = {name: cut_of(name, tensor) for name, tensor in tensors.items() if tensor.ndim and "step" not in name}
    layouts = {name: layout for name, layout in layouts.items() if layout is not None}
    for rank in range(4):
        own = {name: slice_of(tensor, layouts.get(name), rank) for name, tensor in tensors.items()}
        write(tmp_path / f"output/checkpoint/rank_{rank}/tiny_rank_{rank}-1_16.{suffix}", own)
        write(
            tmp_path / f"output/checkpoint/rank_{rank}/tiny_rank_{rank}-1_8.{suffix}",
            {"global_step": torch.tensor([8])},
        )
    folder = tmp_path / ("output/strategy" if beside else "elsewhere")
    folder.mkdir()
    for rank in range(4):
        (folder / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(strategy(layouts))
    load = LoadOptions(tmp_path / "output", strategy=None if beside else folder)
    ours = find_resume(load, tmp_path, llama, as_it_is)
    expected = find_resume(LoadOptions(theirs), tmp_path, llama, as_it_is)
    assert ours.common == expected.common
    assert set(ours.tensors) == set(expected.tensors)
    for name in expected.tensors:
        assert torch.equal(ours.tensors[name], expected.tensors[name]), name


def cut_of(name: str, tensor: Tensor) -> SliceLayout | None:
    if tensor.ndim == 1:
        return None
    cut = (-1, 0) if name.endswith(("wo.weight", "w2.weight")) else (0, -1)
    return SliceLayout((2, 2), cut, 2, 2) if name.startswith("adam_") else SliceLayout((2, 2), cut)


def slice_of(tensor: Tensor, layout: SliceLayout | None, rank: int) -> Tensor:
    if layout is None:
        return tensor
    held = tuple(size // count for size, count in zip(tensor.shape, layout.cuts(tensor.ndim), strict=True))
    return tensor[layout.box(rank, held).place].contiguous()


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.int() if tensor.dtype == torch.int64 else tensor for name, tensor in tensors.items()}
    if path.suffix == ".ckpt":
        path.write_bytes(ckpt(tensors, crc=True))
    else:
        save_file(tensors, path)


def test_cut_tensors_without_a_strategy_are_named(tmp_path: Path) -> None:
    for rank, rows in enumerate((2, 3)):
        write(tmp_path / f"rank_{rank}/x.ckpt", {"model.norm_out.weight": torch.ones(rows)})
    with pytest.raises(CheckpointError) as caught:
        find_weights(LoadOptions(tmp_path), OPTIONS, as_it_is)
    assert "is of (3,), and of (2,) on another rank" in caught.value.message
    assert "--src_strategy_path_or_dir" in str(caught.value.hint)


def test_equal_slices_without_a_strategy_are_taken_for_none(tmp_path: Path) -> None:
    """The likeliest mistake: every rank has half of each tensor, and nothing says so."""
    for rank in range(2):
        write(tmp_path / f"rank_{rank}/x.ckpt", {"model.norm_out.weight": torch.ones(4)})
    parameters = {"model.norm.weight": torch.zeros(8)}
    with pytest.raises(CheckpointError) as caught:
        find_weights(LoadOptions(tmp_path), OPTIONS, lambda source: load_weights(source, parameters, tied=False))
    assert "the shape of model.norm.weight is (4,), the model needs (8,)" in caught.value.message
    assert "--src_strategy_path_or_dir is missing" in str(caught.value.hint)


def test_ranks_without_a_common_step_are_named(tmp_path: Path) -> None:
    for rank in range(2):
        write(tmp_path / f"rank_{rank}/x_rank_{rank}-1_{rank}.ckpt", {"global_step": torch.tensor([rank + 4])})
    with pytest.raises(CheckpointError, match=r"no step is there on all ranks, rank 0: \[4\]; rank 1: \[5\]"):
        find_weights(LoadOptions(tmp_path), OPTIONS, as_it_is)


@pytest.mark.parametrize("name", ["x_rank_0-1_2.ckpt", "x_rank_1-1_2.ckpt"])
def test_a_name_stands_for_those_of_all_ranks(tmp_path: Path, name: str) -> None:
    for rank in range(2):
        for step in (2, 3):
            tensors = {f"of_rank_{rank}": torch.ones(1), "global_step": torch.tensor([step])}
            write(tmp_path / f"rank_{rank}/x_rank_{rank}-1_{step}.ckpt", tensors)
    source = find_resume(LoadOptions(tmp_path, resume_name=name), tmp_path, OPTIONS, as_it_is)
    assert source.common == {"step": 2}
    assert {"of_rank_0", "of_rank_1"} <= set(source.tensors)


def test_a_folder_without_strategies_is_named(tmp_path: Path) -> None:
    write(tmp_path / "rank_0/x.ckpt", {"a": torch.ones(1)})
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="none: no strategy files of MindSpore here"):
        find_weights(LoadOptions(tmp_path, strategy=tmp_path / "none"), OPTIONS, as_it_is)
