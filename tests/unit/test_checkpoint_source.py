"""Recognising what a path is, and filling a model from it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from runformer.checkpoint import (
    CheckpointStore,
    Keep,
    LoadReport,
    TrainingState,
    WeightSource,
    as_it_is,
    find_resume,
    find_weights,
    load_weights,
)
from runformer.checkpoint.foreign import safetensors_file
from runformer.config.task import LoadOptions, LoraOptions, ModelOptions, Precision
from runformer.errors import CheckpointError
from runformer.models.build import build_model, initialise
from runformer.models.names import to_mindformers

OPTIONS = ModelOptions(
    vocab_size=20,
    hidden_size=8,
    intermediate_size=12,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    max_positions=16,
    qkv_bias=True,
)
LORA = LoraOptions(rank=2, alpha=4.0, dropout=0.0, target_modules=".*wq|.*w2")


def parameters(seed: int | None, options: ModelOptions = OPTIONS, lora: LoraOptions | None = None) -> dict[str, Tensor]:
    """A model's parameters, random with ``seed``, or all NaN."""
    model = build_model(options, Precision(), torch.device("cpu"), lora)
    if seed is not None:
        initialise(model, seed)
    values = {name: parameter.data for name, parameter in model.named_parameters()}
    if seed is None:
        for tensor in values.values():
            tensor.fill_(torch.nan)
    return values


def load(path: Path, into: dict[str, Tensor], options: ModelOptions = OPTIONS, name: str | None = None) -> LoadReport:
    take = lambda source: load_weights(source, into, tied=options.tie_embeddings)  # noqa: E731
    return find_weights(LoadOptions(path, resume_name=name), options, take)


def assert_same(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


def under_mindformers_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {to_mindformers(name): tensor for name, tensor in tensors.items()}


def write_sharded(folder: Path, tensors: dict[str, Tensor]) -> None:
    folder.mkdir()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_ours(root: Path, steps: list[int]) -> None:
    for step in steps:
        CheckpointStore(root, "tiny", Keep(5)).save(TrainingState.whole(parameters(step), {}, {"step": step}))


def write_mindformers(folder: Path, file: str, step: int, **scalars: Tensor) -> Path:
    """A training checkpoint as MindFormers names it; ``step`` is also the seed of its values."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = under_mindformers_names(parameters(step))
    moments = {f"adam_{kind}.{name}": tensor + 1 for kind in "mv" for name, tensor in weights.items()}
    save_file(weights | moments | {"global_step": torch.tensor([step], dtype=torch.int32)} | scalars, folder / file)
    return folder / file


def test_a_hugging_face_folder_a_file_and_shards(tmp_path: Path) -> None:
    expected = parameters(1)
    (tmp_path / "folder").mkdir()
    save_file(expected, tmp_path / "folder" / "model.safetensors")
    save_file(under_mindformers_names(expected), tmp_path / "file.safetensors")
    write_sharded(tmp_path / "shards", expected)
    for path in ("folder", "folder/model.safetensors", "file.safetensors", "shards"):
        loaded = parameters(None)
        assert load(tmp_path / path, loaded) == LoadReport(len(expected), (), ())
        assert_same(loaded, expected)


def test_our_checkpoints_from_every_folder_around_them(tmp_path: Path) -> None:
    root = tmp_path / "output" / "checkpoint"
    write_ours(root, [8, 16])
    for path, step in ((root / "iteration_00000008", 8), (root, 16), (root.parent, 16)):
        loaded = parameters(None)
        load(path, loaded)
        assert_same(loaded, parameters(step))


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    write_ours(tmp_path, [8, 16])
    os.truncate(tmp_path / "iteration_00000016" / "tiny-model-0000000-0000001.safetensors", 300)
    loaded = parameters(None)

    def take(source: WeightSource) -> WeightSource:
        load_weights(source, loaded, tied=False)
        return source

    source = find_resume(LoadOptions(), tmp_path, OPTIONS, take)
    assert source.common == {"step": 8}
    assert_same(loaded, parameters(8))
    assert len(source.notices) == 1
    assert "iteration_00000016" in source.notices[0]


def test_mindformers_folders_by_the_step_inside_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "output" / "checkpoint" / "rank_0"
    write_mindformers(folder, "tiny_rank_0_1-1_4.safetensors", 20)  # after a resume names begin anew
    write_mindformers(folder, "tiny_rank_0-1_16.safetensors", 16)
    (folder / "meta.json").write_text(json.dumps({"last_step": 16, "last_ckpt_file": "tiny_rank_0-1_16.safetensors"}))
    (folder / "broken.safetensors").write_bytes(b"torn")
    for path in (tmp_path / "output", folder.parent, folder):
        source = find_weights(LoadOptions(path), OPTIONS, as_it_is)
        assert source.path == folder / "tiny_rank_0_1-1_4.safetensors"
        assert source.common == {"step": 20}
        assert "broken.safetensors" in source.notices[0]


def test_mindformers_moments_and_scalars(tmp_path: Path) -> None:
    scalars = {
        "global_batch_size": torch.tensor(4),
        "loss_scale": torch.tensor(512.0),
        "current_iterator_step": torch.tensor(17),
        "last_overflow_iterator_step": torch.tensor(6),
    }
    write_mindformers(tmp_path / "rank_0", "tiny_rank_0-1_16.safetensors", 16, **scalars)
    source = find_resume(LoadOptions(tmp_path), tmp_path / "output", OPTIONS, as_it_is)
    assert source.common == {"step": 16, "global_batch_size": 4, "loss_scale": {"scale": 512.0, "good_steps": 10}}
    loaded = parameters(None)
    assert load_weights(source, loaded, tied=False) == LoadReport(len(loaded), (), ())
    for name, tensor in loaded.items():
        assert torch.equal(source.tensors[f"exp_avg.{name}"], tensor + 1)
        assert torch.equal(source.tensors[f"exp_avg_sq.{name}"], tensor + 1)


@pytest.mark.parametrize("name", ["iteration_00000008", "tiny_rank_0-1_16.safetensors"])
def test_a_checkpoint_by_its_name(tmp_path: Path, name: str) -> None:
    write_ours(tmp_path / "checkpoint", [8, 24])
    write_mindformers(tmp_path / "checkpoint" / "rank_0", "tiny_rank_0-1_16.safetensors", 16)
    write_mindformers(tmp_path / "checkpoint" / "rank_0", "tiny_rank_0-1_32.safetensors", 32)
    source = find_resume(LoadOptions(None, resume_name=name), tmp_path, OPTIONS, as_it_is)
    assert source.path.name == name
    assert source.common is not None
    loaded = parameters(None)
    load_weights(source, loaded, tied=False)
    assert_same(loaded, parameters(source.common["step"]))


def test_a_name_that_is_not_there_tells_those_that_are(tmp_path: Path) -> None:
    write_ours(tmp_path / "checkpoint", [8])
    for name in ("iteration_00000099", "../checkpoint/iteration_00000008"):
        with pytest.raises(CheckpointError, match=name) as error:
            find_resume(LoadOptions(None, resume_name=name), tmp_path, OPTIONS, as_it_is)
        assert error.value.hint == "these are: iteration_00000008"


def test_resuming_from_weights_alone_is_refused(tmp_path: Path) -> None:
    save_file(parameters(1), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no training state to resume from"):
        find_resume(LoadOptions(tmp_path), tmp_path / "output", OPTIONS, as_it_is)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth", ".gguf"])
def test_other_formats_are_refused_with_a_way_out(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"pytorch_model{suffix}"
    file.write_bytes(b"anything")
    for path in (file, tmp_path):
        with pytest.raises(CheckpointError, match=f"pytorch_model{suffix}") as error:
            find_weights(LoadOptions(path), OPTIONS, as_it_is)
        assert error.value.hint is not None


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "iteration_00000008").mkdir()
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    for path, complaint in (
        (tmp_path / "missing", "no such file or folder"),
        (tmp_path / "empty", "no weights here"),
        (tmp_path / "iteration_00000008", "no complete checkpoint here"),
        (tmp_path, "is not the name of a file beside it"),
    ):
        with pytest.raises(CheckpointError, match=complaint):
            find_weights(LoadOptions(path), OPTIONS, as_it_is)


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=60) | st.sampled_from([b"[]", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}', b"1"]))
def test_any_index_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("index")
    (folder / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        find_weights(LoadOptions(folder), OPTIONS, as_it_is)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path / "shards", parameters(1))
    (tmp_path / "shards" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: there is no such file"):
        find_weights(LoadOptions(tmp_path / "shards"), OPTIONS, as_it_is)


def test_our_checkpoints_come_before_those_of_ranks(tmp_path: Path) -> None:
    for rank in range(2):
        write_mindformers(tmp_path / f"rank_{rank}", f"tiny_rank_{rank}-1_16.safetensors", 16)
    assert find_weights(LoadOptions(tmp_path), OPTIONS, as_it_is).common == {"step": 16}
    write_ours(tmp_path, [3])
    assert find_weights(LoadOptions(tmp_path), OPTIONS, as_it_is).common == {"step": 3}


def test_several_sets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        save_file(parameters(1), tmp_path / "two" / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"two/b\.safetensors: the tensor .* is also in .*two/a\.safetensors"):
        find_weights(LoadOptions(tmp_path / "two"), OPTIONS, as_it_is)


def fuse(tensors: dict[str, Tensor], options: ModelOptions) -> dict[str, Tensor]:
    """MindFormers' ``qkv_concat`` form, head by head and row by row, as its converter arranges it."""
    fused = dict(tensors)
    for layer in range(options.num_layers):
        for kind in ("weight", "bias"):
            q, k, v = (fused.pop(f"model.layers.{layer}.attention.{w}.{kind}") for w in ("wq", "wk", "wv"))
            rows: list[Tensor] = []
            for head in range(options.num_kv_heads):
                for tensor, heads in ((q, options.num_heads // options.num_kv_heads), (k, 1), (v, 1)):
                    size = heads * options.head_dim
                    rows += tensor[head * size : (head + 1) * size]
            fused[f"model.layers.{layer}.attention.w_qkv.{kind}"] = torch.stack(rows)
        gate, up = (fused.pop(f"model.layers.{layer}.feed_forward.{w}.weight") for w in ("w1", "w3"))
        rows = [row for pair in zip(gate, up, strict=True) for row in pair]
        fused[f"model.layers.{layer}.feed_forward.w_gate_hidden.weight"] = torch.stack(rows)
    return fused


def test_fused_tensors_are_taken_apart(tmp_path: Path) -> None:
    expected = parameters(1)
    for name, tensor in expected.items():
        if name.endswith("bias"):
            tensor.copy_(torch.arange(len(tensor)))
    file = tmp_path / "model.safetensors"
    save_file(fuse(under_mindformers_names(expected), OPTIONS), file)
    loaded = parameters(None)
    load(file, loaded)
    assert_same(loaded, expected)
    other = replace(OPTIONS, num_heads=5, num_kv_heads=1)
    with pytest.raises(CheckpointError, match=r"w_qkv.* has 16 rows, the model's parts together 14"):
        load(file, loaded, other)


def test_each_parameter_keeps_its_own_type(tmp_path: Path) -> None:
    expected = parameters(1)
    save_file({name: tensor.bfloat16() for name, tensor in expected.items()}, tmp_path / "model.safetensors")
    loaded = parameters(None)
    load(tmp_path, loaded)
    for name, tensor in loaded.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name].bfloat16().float())


def test_loading_keeps_little_of_the_file_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "REMAP_BYTES", 1 << 20)
    sizes = {f"layer.{number}": torch.ones(1 << 18) for number in range(64)}  # 64 MiB in all
    save_file(sizes, tmp_path / "model.safetensors")
    source = find_weights(LoadOptions(tmp_path), OPTIONS, as_it_is)
    before, peak = psutil.Process().memory_info().rss, 0
    for name in source.tensors:
        assert source.tensors[name].sum() == 1 << 18
        peak = max(peak, psutil.Process().memory_info().rss)
    assert peak - before < 16 << 20


def test_a_tied_model_ignores_a_copy_of_its_embedding_but_not_another_head(tmp_path: Path) -> None:
    tied = replace(OPTIONS, tie_embeddings=True)
    weights = parameters(1)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    assert load(tmp_path, parameters(None, tied), tied).unexpected == ()
    weights["lm_head.weight"][3, 3] += 1
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="an output layer of its own") as error:
        load(tmp_path, parameters(None, tied), tied)
    assert "tie_word_embeddings to False" in str(error.value)


def test_a_missing_output_layer_asks_whether_it_is_tied(tmp_path: Path) -> None:
    save_file(parameters(1, replace(OPTIONS, tie_embeddings=True)), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing") as error:
        load(tmp_path, parameters(None))
    assert "tie_word_embeddings to True" in str(error.value)


def test_adapters_may_be_fresh_but_are_never_dropped(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    save_file(parameters(1), tmp_path / "base" / "model.safetensors")
    adapted = parameters(2, lora=LORA)
    before = {name: tensor.clone() for name, tensor in adapted.items()}
    report = load(tmp_path / "base", adapted)
    assert report.fresh_adapters == tuple(name for name in adapted if ".lora_" in name)
    assert report.loaded == len(parameters(1))
    assert all(torch.equal(adapted[name], before[name]) for name in report.fresh_adapters)
    save_file(under_mindformers_names(adapted), tmp_path / "adapted.safetensors")
    loaded = parameters(None, lora=LORA)
    load(tmp_path / "adapted.safetensors", loaded)
    assert_same(loaded, adapted)
    with pytest.raises(CheckpointError, match="LoRA adapters that the model has no place for"):
        load(tmp_path / "adapted.safetensors", parameters(None))


def test_what_is_missing_and_what_is_left_over(tmp_path: Path) -> None:
    weights = parameters(1, replace(OPTIONS, num_layers=3))
    save_file(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, tmp_path / "model.safetensors")
    report = load(tmp_path, parameters(None))
    assert len(report.unexpected) == 12
    assert all(name.startswith("model.layers.2.") for name in report.unexpected)
    with pytest.raises(CheckpointError, match=r"12 of 51 tensors missing: model\.layers\.3\.[\w.]+, .* and 8 more"):
        load(tmp_path, parameters(None, replace(OPTIONS, num_layers=4)))


def test_a_bias_that_the_model_would_leave_out_is_refused(tmp_path: Path) -> None:
    save_file(under_mindformers_names(parameters(1)), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"6 tensors that the model's layers .*\.0\.self_attn\.q_proj\.bias"):
        load(tmp_path, parameters(None, replace(OPTIONS, qkv_bias=False)))


def test_weights_of_something_else_are_told_apart(tmp_path: Path) -> None:
    save_file({"decoder.layers.0.linear_qkv.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="tensors missing") as error:
        load(tmp_path, parameters(None))
    assert "it holds instead: decoder.layers.0.linear_qkv.weight" in str(error.value)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"vocab_size": 24}, "vocab_size"),
        ({"hidden_size": 10}, "hidden_size"),
        ({"intermediate_size": 16}, "intermediate_size"),
        ({"num_heads": 6}, "num_heads"),
        ({"num_kv_heads": 4}, "n_kv_heads"),
    ],
)
def test_a_shape_that_differs_names_the_option(tmp_path: Path, change: dict[str, Any], option: str) -> None:
    save_file(parameters(1), tmp_path / "model.safetensors")
    model = parameters(None, replace(OPTIONS, **change))
    with pytest.raises(CheckpointError, match=r"model\.safetensors \(.*\): the shape of .* the model needs") as error:
        load(tmp_path, model)
    assert error.value.hint is not None
    assert error.value.hint.startswith(f"{option} of model.model_config")
    assert all(tensor.isnan().all() for tensor in model.values())  # checked before anything was changed


def test_another_rank_of_adapters_names_its_option(tmp_path: Path) -> None:
    save_file(parameters(1, lora=LORA), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load(tmp_path, parameters(None, lora=replace(LORA, rank=3)))
    assert error.value.hint is not None
    assert error.value.hint.startswith("pet_config.lora_rank")


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    weights = parameters(1)
    weights["lm_head.weight"] = torch.ones(20, 8, dtype=torch.int8)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight\): the tensor lm_head.weight is of type I8"):
        load(tmp_path, parameters(None))
