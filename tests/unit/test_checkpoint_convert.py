"""Weights from any form to any other: the same tensors, which compute the same, and load where they are meant to."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any, cast

import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_models_parity import CASES, make_pair

from runformer.checkpoint import CheckpointStore, Keep, TrainingState, describe, find_weights, load_weights
from runformer.checkpoint import convert as converting
from runformer.checkpoint.convert import Conversion, convert
from runformer.checkpoint.foreign.hf_folder import hf_config
from runformer.checkpoint.foreign.other_kinds import as_loadable
from runformer.config.task import LoadOptions, LoraOptions, ModelOptions, Precision, RopeScaling
from runformer.errors import CheckpointError
from runformer.models.build import build_model, initialise
from runformer.models.decoder import CausalLM
from runformer.models.families import options_from_config

CPU = torch.device("cpu")
TOKENS = torch.randint(120, (2, 24), generator=torch.Generator().manual_seed(5))


def logits_of(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(TOKENS).logits
    return logits


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_again(case: str, tmp_path: Path) -> None:
    """Hugging Face → MindFormers in shards → ours → Hugging Face: bit for bit, and transformers computes the same."""
    theirs, _ = make_pair(case, tmp_path / "hf")
    (tmp_path / "hf/tokenizer.json").write_text("{}")
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("ms", "mindformers", {"shard_bytes": 100_000, "workers": 2}),
        ("own", "runformer", {"folder": tmp_path / "hf"}),
        ("back", "hf", {}),
    ]
    path = tmp_path / "hf"
    for name, form, more in steps:
        said = convert(Conversion(LoadOptions(path), tmp_path / name, form, **more))  # type: ignore[arg-type]
        assert said.endswith("which compute the same")
        path = tmp_path / name
    assert len(list((tmp_path / "ms").glob("*.safetensors"))) > 1
    before, after = load_file(tmp_path / "hf/model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        expected = theirs(TOKENS).logits
    assert close(logits_of(tmp_path / "back"), expected)


def test_a_dtype_shards_and_what_lies_beside(tmp_path: Path) -> None:
    make_pair("qwen2", tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / "hf" / name).write_text("{}")
    convert(Conversion(LoadOptions(tmp_path / "hf"), tmp_path / "half", "hf", dtype=torch.bfloat16, shard_bytes=50_000))
    index = json.loads((tmp_path / "half/model.safetensors.index.json").read_text())
    before = load_file(tmp_path / "hf/model.safetensors")
    assert index["weight_map"].keys() == before.keys()
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "half" / file)[name], before[name].bfloat16())
    config = json.loads((tmp_path / "half/config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert "dtype" in json.loads((tmp_path / "hf/config.json").read_text()), "transformers names it so"
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in (tmp_path / "half").iterdir()}
    assert logits_of(tmp_path / "half").isfinite().all()


OPTIONS = ModelOptions(128, 32, 48, 2, 4, 2, 8, 64, qkv_bias=True, tie_embeddings=True)
LORA = LoraOptions(4, 16.0, 0.0, "wq|wv|w2", exclude=(r"model\.layers\.0\.mlp",))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run with adapters on some layers."""
    model = build_model(OPTIONS, Precision(), CPU, LORA)
    initialise(model, 3)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name or name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, std=0.2)
    common = {"step": 7, "model": describe(OPTIONS, LORA)}
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    root = tmp_path_factory.mktemp("adapted")
    CheckpointStore(root / "checkpoint", "x", Keep()).save(TrainingState.whole(weights, {}, common))
    trained = {name: tensor for name, tensor in weights.items() if ".lora_" in name}
    CheckpointStore(root / "checkpoint_trainable", "x", Keep()).save(TrainingState.whole(trained, {}, common))
    return root


def own_logits(path: Path, lora: LoraOptions | None = None, base: Path | None = None) -> torch.Tensor:
    model: CausalLM = build_model(OPTIONS, Precision(), CPU, lora)
    find_weights(
        LoadOptions(path, base=base),
        OPTIONS,
        lambda source: load_weights(source, dict(model.named_parameters()), tied=True),
    )
    with torch.no_grad():
        return model.eval().logits(model(TOKENS))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 2e-5 * theirs.abs().max())


def test_adapters_are_merged_on_export_and_at_load(adapted: Path, tmp_path: Path) -> None:
    expected = own_logits(adapted, LORA)
    assert close(own_logits(adapted), expected), "a model without adapters has them in its weights"
    convert(Conversion(LoadOptions(adapted), tmp_path / "hf", "hf"))
    assert not any("lora" in name for name in load_file(tmp_path / "hf/model.safetensors"))
    assert close(logits_of(tmp_path / "hf"), expected)
    convert(Conversion(LoadOptions(adapted), tmp_path / "ms.ckpt", "mindformers"))
    assert close(own_logits(tmp_path / "ms.ckpt"), expected)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks for it
def test_peft_loads_our_adapters_and_we_load_theirs(adapted: Path, tmp_path: Path) -> None:
    expected = own_logits(adapted, LORA)
    base = build_model(OPTIONS, Precision(), CPU)
    find_weights(LoadOptions(adapted), OPTIONS, lambda source: fill_base(source.tensors, base))
    save_file({name: p.detach() for name, p in base.named_parameters()}, made(tmp_path / "base") / "model.safetensors")
    (tmp_path / "base/config.json").write_text(json.dumps(hf_config(OPTIONS)))
    for source in ("checkpoint", "checkpoint_trainable"):
        output = tmp_path / f"peft_{source}"
        convert(Conversion(LoadOptions(adapted / source), output, "peft", folder=tmp_path / "base"))
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(model, str(output)).eval()
        with torch.no_grad():
            assert close(theirs(TOKENS).logits, expected)
        theirs.save_pretrained(tmp_path / f"theirs_{source}")
    for folder in (tmp_path / "peft_checkpoint", tmp_path / "theirs_checkpoint", adapted / "checkpoint_trainable"):
        assert close(own_logits(folder, LORA, base=tmp_path / "base"), expected)
        assert close(own_logits(folder, base=tmp_path / "base"), expected)
    convert(
        Conversion(LoadOptions(tmp_path / "theirs_checkpoint"), tmp_path / "merged", "hf", folder=tmp_path / "base")
    )
    assert close(logits_of(tmp_path / "merged"), expected)


def fill_base(tensors: Any, base: CausalLM) -> bool:
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            parameter.copy_(tensors[name])
    return True


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@st.composite
def model_options(draw: st.DrawFn) -> ModelOptions:
    kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    scaling = draw(
        st.none()
        | st.builds(RopeScaling, st.just("linear"), st.floats(1, 8))
        | st.builds(RopeScaling, st.just("yarn"), st.floats(1, 8), st.integers(64, 4096), beta_fast=st.floats(16, 64))
        | st.builds(
            RopeScaling, st.just("llama3"), st.floats(1, 8), st.integers(64, 4096), st.floats(1, 2), st.floats(3, 5)
        )
    )
    bias, norm = draw(st.booleans()), draw(st.booleans())
    output = bias and draw(st.booleans())
    return ModelOptions(
        *draw(st.tuples(*[st.integers(8, 999)] * 3)),
        num_layers=draw(st.integers(1, 9)),
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([4, 8, 64, 128])),
        max_positions=draw(st.integers(16, 10**6)),
        rms_norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        rope_theta=draw(st.sampled_from([1e4, 1e6, 5e5])),
        rope_scaling=scaling,
        qkv_bias=bias and (output or not norm),
        attention_output_bias=output,
        mlp_bias=output and not norm and draw(st.booleans()),
        qk_norm=norm,
        tie_embeddings=draw(st.booleans()),
        initializer_range=0.02,
        bos_token_id=draw(st.none() | st.integers(0, 7)),
        eos_token_ids=tuple(draw(st.lists(st.integers(0, 7), max_size=3))),
        pad_token_id=draw(st.none() | st.integers(0, 7)),
    )


@given(model_options())
def test_a_config_json_says_all_of_a_model(options: ModelOptions) -> None:
    assert options_from_config(json.loads(json.dumps(hf_config(options))), "config.json") == options


class Evil:
    """What a pickle could do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_read_as_tensors_in_a_child_or_not_at_all(tmp_path: Path) -> None:
    make_pair("llama3", tmp_path / "hf")
    tensors = load_file(tmp_path / "hf/model.safetensors")
    (tmp_path / "old").mkdir()
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "old/pytorch_model.bin")
    (tmp_path / "old/config.json").write_bytes((tmp_path / "hf/config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not loaded") as refused:
        convert(Conversion(LoadOptions(tmp_path / "old"), tmp_path / "no", "hf"))
    assert "--allow_pickle" in str(refused.value.hint)
    with as_loadable(tmp_path / "old", allow_pickle=True) as path:
        convert(Conversion(LoadOptions(path), tmp_path / "new", "hf"))
    assert not path.exists()
    after = load_file(tmp_path / "new/model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items())


def test_a_pickle_that_does_anything_is_refused_and_does_nothing(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": Evil(tmp_path / "done")}, tmp_path / "evil.bin")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": Evil(tmp_path / "done")}))
    (tmp_path / "none.pth").write_bytes(b"no pickle")
    torch.save({"step": 3}, tmp_path / "empty.pt")
    for name in ("evil.bin", "plain.pt", "none.pth", "empty.pt"):
        with (
            pytest.raises(CheckpointError, match=f"{name}: cannot be read as tensors alone"),
            as_loadable(tmp_path / name, allow_pickle=True),
        ):
            pass
    assert not (tmp_path / "done").exists()


def test_what_computes_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pair("qwen2", tmp_path / "hf")

    def swapped(*arguments: Any, **more: Any) -> None:
        write(*arguments, **more)
        file = arguments[0] / "model.safetensors"
        tensors = load_file(file)
        one, other = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
        tensors[one], tensors[other] = tensors[other], tensors[one]
        save_file(tensors, file)

    write = converting.write_shards
    monkeypatch.setattr(converting, "write_shards", swapped)
    with pytest.raises(CheckpointError, match="what was written computes otherwise: logits differ by"):
        convert(Conversion(LoadOptions(tmp_path / "hf"), tmp_path / "out", "hf"))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output": "hf"}, "exists already"),
        ({"form": "peft"}, "holds no LoRA adapters"),
        ({"output": "out.safetensors"}, "out.safetensors: --to hf makes a folder, not a file"),
        ({"output": "out.ckpt", "form": "peft"}, "out.ckpt: --to peft makes a folder, not a file"),
        ({"folder": "bare"}, "bare: there is no config.json here"),
        ({"load": "bare"}, "does not say what model it is of"),
    ],
)
def test_what_cannot_be_converted_is_named(change: dict[str, str], words: str, tmp_path: Path) -> None:
    make_pair("qwen2", tmp_path / "hf")
    save_file(load_file(tmp_path / "hf/model.safetensors"), made(tmp_path / "bare") / "x.safetensors")
    asked = {"load": "hf", "output": "out", "form": "hf"} | change
    folder = tmp_path / asked["folder"] if "folder" in asked else None
    load, form = LoadOptions(tmp_path / asked["load"]), cast(converting.Form, asked["form"])
    with pytest.raises(CheckpointError, match=words):
        convert(Conversion(load, tmp_path / asked["output"], form, folder=folder))
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "bare"}
