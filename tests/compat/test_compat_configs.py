"""Other people's task files: each becomes a Task or is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from published_files import FILES, MEGATRON_STAND_IN, SHARED, STAND_INS, make_stand_ins

from runformer.config import ModelOptions, Task, load_task
from runformer.config.task import MegatronFiles
from runformer.errors import ConfigError

# What a file is refused for, even where everything that it names is there.
REFUSED = {
    "compat/configs/glm4/finetune_glm4_9b.yaml": "the model family of 'ChatGLM2Config' is not supported",
    "compat/configs/general/run_general_task.yaml": "model.model_config does not describe a model",
}


@pytest.fixture(autouse=True)
def _stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_stand_ins(tmp_path)


def load(name: str, *arguments: str) -> Task:
    megatron = [MEGATRON_STAND_IN] if "qwen3_32b_4k" in name else []
    return load_task(["--config", str(SHARED / name), *STAND_INS, *megatron, *arguments])


def is_described_by_a_folder(name: str) -> bool:
    return "pretrained_model_dir" in (SHARED / name).read_text(encoding="utf-8")


def test_all_files_are_there(shared_dir: Path) -> None:
    assert shared_dir == SHARED
    assert len(FILES) >= 36


@pytest.mark.parametrize("name", FILES)
def test_every_file_loads_or_is_refused_by_name(name: str) -> None:
    folder = ("--pretrained_model_dir", "hf") if is_described_by_a_folder(name) else ()
    refused = "mixtures of experts (Mixtral" if "mixtral" in name else REFUSED.get(name)
    if refused is None:
        task = load(name, *folder)
        assert (task.train is None) != (task.predict is None)
        assert (task.model.options is None) == bool(folder)
        task.require_built()
        return
    with pytest.raises(ConfigError) as caught:
        load(name, *folder)
    assert refused in str(caught.value)
    assert "supported" in str(caught.value).lower()


@pytest.mark.usefixtures("shared_dir")
def test_files_that_need_an_edit_load_once_edited() -> None:
    general = "compat/configs/general/run_general_task.yaml"
    task = load(general, "--pretrained_model_dir", "hf")
    assert task.train is not None
    assert task.train.schedule.kind == "PolynomialWithWarmUpLR"
    qwen3 = load("compat/configs/qwen3/pretrain_qwen3_32b_4k.yaml")
    assert qwen3.model.options is not None
    assert (qwen3.model.options.qk_norm, qwen3.model.options.head_dim, qwen3.model.options.num_heads) == (True, 128, 64)
    assert qwen3.train is not None
    assert qwen3.train.data.already_shifted
    source = qwen3.train.data.source
    assert isinstance(source, MegatronFiles)
    assert (source.names, source.weights, source.size, source.sequence_length, source.seed) == (
        ("text_document",),
        (1.0,),
        8000,
        4096,
        1234,
    )


@pytest.mark.usefixtures("shared_dir")
def test_our_recipe_is_the_published_one(repository: Path) -> None:
    name = "research/qwen2_5/finetune_qwen2_5_0_5b_8k.yaml"

    def values(task: Task) -> Task:
        return dataclasses.replace(task, config_file=Path("x"), notices=(), without_effect={})

    ours = load_task(["--register_path", "research/qwen2_5", "--config", "finetune_qwen2_5_0_5b_8k.yaml", *STAND_INS])
    assert ours.config_file == repository / name
    assert "found in the register path" in ours.notices[0]
    assert values(ours) == values(load(f"compat/{name}"))


@pytest.mark.usefixtures("shared_dir")
def test_qwen2_5_0_5b_is_the_model_of_hugging_face() -> None:
    assert load("compat/research/qwen2_5/finetune_qwen2_5_0_5b_8k.yaml").model.options == ModelOptions(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        max_positions=131072,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        qkv_bias=True,
        tie_embeddings=True,
        bos_token_id=151643,
        eos_token_ids=(151643,),
        pad_token_id=151643,
    )


@pytest.mark.parametrize("mode", ["train", "finetune", "predict"])
@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("oracle")])
def test_one_file_serves_every_run_mode(name: str, mode: str) -> None:
    if mode != "predict" and "predict" in name:
        pytest.skip("a file without a dataset")
    task = load(name, "--run_mode", mode)
    assert task.run_mode == mode
    assert (task.predict is not None) == (mode == "predict")
