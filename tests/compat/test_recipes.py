"""Our recipes: each is the model that it says, serves every run mode, and is planned as it stands."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from runformer.cli.main import main
from runformer.config import ModelOptions, Task, load_task
from runformer.models.build import build_model
from runformer.models.families import options_from_config

REPOSITORY = Path(__file__).resolve().parents[2]
# Published numbers of parameters, by the name of the model in the recipe's file name.
PARAMETERS = {
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_14b": 14_770_033_664,
    "qwen2_5_32b": 32_763_876_352,
    "qwen2_5_72b": 72_706_203_648,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "llama3_2_1b": 1_235_814_400,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
}
RECIPES = sorted(
    str(path.relative_to(REPOSITORY))
    for folder in ("configs", "research/qwen2_5")
    for path in (REPOSITORY / folder).rglob("*_*.yaml")
)
DEVICE_BYTES = 80e9


def model_of(recipe: str) -> str:
    name = Path(recipe).stem.partition("_")[2].removesuffix("_instruct")
    return name if name in PARAMETERS else name.rpartition("_")[0]


@functools.cache
def parameters(options: ModelOptions) -> int:
    model = build_model(options, load(RECIPES[0]).model.precision, torch.device("meta"))
    return sum(parameter.numel() for parameter in model.parameters())


def load(recipe: str, *arguments: str) -> Task:
    return load_task(["--config", str(REPOSITORY / recipe), "--dry_run", "True", *arguments])


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_model_has_a_recipe_for_finetuning_and_one_for_predicting() -> None:
    found = {(Path(recipe).stem.partition("_")[0], model_of(recipe)) for recipe in RECIPES}
    assert found == {(mode, model) for mode in ("finetune", "predict") for model in PARAMETERS}
    assert len(RECIPES) == len(found)


@pytest.mark.parametrize("mode", ["train", "finetune", "eval", "predict"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_each_serves_every_run_mode(recipe: str, mode: str) -> None:
    task = load(recipe, "--run_mode", mode, "--use_parallel", "False")
    assert task.model.options is not None
    assert parameters(task.model.options) == PARAMETERS[model_of(recipe)]
    assert [task.train is not None, task.evaluation is not None, task.predict is not None].count(True) == 1
    if task.predict is not None:  # with no length, answers end after 20 tokens
        assert task.predict.generation.max_length


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_is_planned_as_it_stands(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by its name alone, with no more to fill in than data and weights, and within a device of 80 GB."""
    monkeypatch.chdir(tmp_path)
    name = ["--config", Path(recipe).name]
    register = ["--register_path", "research/qwen2_5"] if recipe.startswith("research") else []
    assert main([*register, *name, "--dry_run", "True"]) == 0, capsys.readouterr().err
    plan = json.loads((tmp_path / "output/plan.json").read_text())
    assert plan["model"]["parameters"] == PARAMETERS[model_of(recipe)]
    assert set(plan["to_fill_in"]) <= {"train_dataset.data_loader.dataset_dir", "load_checkpoint", "input_data"} | {
        f"processor.tokenizer.{name}" for name in ("vocab_file", "merges_file")
    }
    assert sum(plan["memory_of_a_device"].values()) < DEVICE_BYTES
    assert not [reason for reason in plan["without_effect"] if "not built" in reason and recipe.startswith("configs")]


def test_base_and_instruct_models_have_one_shape() -> None:
    """But for what instruction tuning changed: tokens that end a text and, of Qwen2.5, positions and an epsilon."""
    for model in PARAMETERS:
        pair = [load(recipe).model.options for recipe in RECIPES if model_of(recipe) == model]
        first, second = (
            {name: getattr(options, name) for name in ModelOptions.__dataclass_fields__} for options in pair
        )
        differing = {name for name in first if first[name] != second[name]}
        assert differing <= {"eos_token_ids", "bos_token_id", "pad_token_id", "max_positions", "rms_norm_eps"}, model


LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("recipe", "config"),
    [
        (
            "configs/llama3_2/predict_llama3_2_1b_instruct.yaml",
            {
                "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
                "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
                "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": LLAMA_3_ROPE, "tie_word_embeddings": True,
                "max_position_embeddings": 131072, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
                "pad_token_id": 128004,
            },
        ),
        (
            "configs/qwen3/predict_qwen3_0_6b.yaml",
            {
                "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
                "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
                "rms_norm_eps": 1e-6, "rope_theta": 1000000, "tie_word_embeddings": True, "attention_bias": False,
                "max_position_embeddings": 40960, "bos_token_id": 151643, "eos_token_id": [151645, 151643],
                "pad_token_id": 151643,
            },
        ),
        (
            "research/qwen2_5/predict_qwen2_5_7b_instruct.yaml",
            {
                "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
                "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
                "rope_theta": 1000000.0, "tie_word_embeddings": False, "max_position_embeddings": 32768,
                "bos_token_id": 151643, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
            },
        ),
        (
            "configs/smollm2/predict_smollm2_135m_instruct.yaml",
            {
                "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
                "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5,
                "rope_theta": 100000, "tie_word_embeddings": True, "max_position_embeddings": 8192,
                "initializer_range": 0.041666666666666664, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
            },
        ),
    ],
)  # fmt: skip
def test_a_recipe_says_what_the_config_of_hugging_face_says(recipe: str, config: dict[str, Any]) -> None:
    assert load(recipe, "--use_parallel", "False").model.options == options_from_config(config, "config.json")
