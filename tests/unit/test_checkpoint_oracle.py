"""Files that MindFormers itself wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from runformer.checkpoint import (
    CheckpointStore,
    Keep,
    TrainingState,
    as_it_is,
    find_resume,
    find_weights,
    load_weights,
    open_checkpoint,
)
from runformer.config.task import LoadOptions, LoraOptions, ModelOptions, Precision
from runformer.models.build import build_model
from runformer.models.families import options_from_config, read_config

QWEN = ModelOptions(512, 112, 144, 2, 14, 2, 8, 64, qkv_bias=True, tie_embeddings=True)


@pytest.fixture
def llama(oracle_dir: Path) -> ModelOptions:
    folder = oracle_dir / "llama_pretrain" / "init_hf"
    return options_from_config(read_config(folder), str(folder))


def empty(options: ModelOptions, lora: LoraOptions | None = None) -> dict[str, Tensor]:
    model = build_model(options, Precision(), torch.device("cpu"), lora)
    return {name: parameter.data.fill_(torch.nan) for name, parameter in model.named_parameters()}


def loaded(path: Path, options: ModelOptions, lora: LoraOptions | None = None) -> dict[str, Tensor]:
    """Load ``path`` whole: every parameter is filled and nothing is left over."""
    tensors = empty(options, lora)
    source = find_weights(LoadOptions(path), options, as_it_is)
    report = load_weights(source, tensors, tied=options.tie_embeddings)
    assert (report.loaded, report.fresh_adapters, report.unexpected) == (len(tensors), (), ())
    return tensors


def assert_same(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


def test_mindformers_names_give_the_tensors_of_the_hugging_face_folder(oracle_dir: Path, llama: ModelOptions) -> None:
    expected = load_file(oracle_dir / "llama_pretrain" / "init_hf" / "model.safetensors")
    for folder in ("init", "init_hf"):
        assert_same(loaded(oracle_dir / "llama_pretrain" / folder, llama), expected)


def test_a_tied_model_with_biases(oracle_dir: Path) -> None:
    tensors = loaded(oracle_dir / "qwen2_finetune_mask" / "init", QWEN)
    raw = load_file(oracle_dir / "qwen2_finetune_mask" / "init" / "model.safetensors")
    assert torch.equal(tensors["model.layers.1.self_attn.k_proj.bias"], raw["model.layers.1.attention.wk.bias"])
    assert "lm_head.weight" not in tensors


def test_adapters_equal_those_of_peft(oracle_dir: Path, llama: ModelOptions) -> None:
    case = oracle_dir / "llama_lora"
    adapters = load_file(case / "init_hf_lora" / "adapter_model.safetensors")
    expected = load_file(case / "init_hf" / "model.safetensors")
    expected |= {name.removeprefix("base_model.model."): tensor for name, tensor in adapters.items()}
    assert_same(loaded(case / "init", llama, LoraOptions(8, 16.0, 0.0, ".*wq|.*wk|.*wv|.*wo")), expected)


@pytest.mark.parametrize(
    "place", ["", "checkpoint", "checkpoint/rank_0", "checkpoint/rank_0/tiny_rank_0-1_16.safetensors"]
)
def test_resuming_from_mindformers_own_checkpoint(oracle_dir: Path, llama: ModelOptions, place: str) -> None:
    source = find_resume(LoadOptions(oracle_dir / "llama_resume" / place), Path("output"), llama, as_it_is)
    assert source.common == {"step": 16, "global_batch_size": 4, "loss_scale": {"scale": 1.0, "good_steps": 0}}
    raw = load_file(oracle_dir / "llama_resume" / "checkpoint" / "rank_0" / "tiny_rank_0-1_16.safetensors")
    for name, parameter in empty(llama).items():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert source.tensors[f"{moment}.{name}"].shape == parameter.shape
    first = source.tensors["exp_avg.model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(first, raw["adam_m.model.layers.1.feed_forward.w2.weight"])
    second = source.tensors["exp_avg_sq.model.embed_tokens.weight"]
    assert torch.equal(second, raw["adam_v.model.tok_embeddings.embedding_weight"])


def test_their_checkpoint_becomes_ours_bit_for_bit(oracle_dir: Path, llama: ModelOptions, tmp_path: Path) -> None:
    theirs = find_resume(LoadOptions(oracle_dir / "llama_resume"), tmp_path, llama, as_it_is)
    assert theirs.common is not None
    tensors = empty(llama)
    load_weights(theirs, tensors, tied=False)
    moments = {name: theirs.tensors[name] for name in theirs.tensors if name.startswith("exp_avg")}
    assert len(moments) == 2 * len(tensors)
    CheckpointStore(tmp_path, "tiny", Keep(1)).save(TrainingState.whole(tensors, moments, theirs.common))
    ours = open_checkpoint(tmp_path / "iteration_00000016")
    assert ours.common == theirs.common
    assert_same(dict(ours), tensors | moments)
