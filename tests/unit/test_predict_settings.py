"""Generation options: who decides, what is refused, and how long a text may become."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from runformer.config.task import GenerationOptions, ModelOptions, ModelTask
from runformer.errors import PredictError
from runformer.predict.settings import (
    LengthLimit,
    Settings,
    read_generation_config,
    resolve_eos_ids,
    resolve_settings,
)

OPTIONS = ModelOptions(10, 8, 8, 1, 2, 2, 4, 32, eos_token_ids=(2, 3))


def test_the_task_wins_over_the_folder_and_that_over_the_defaults() -> None:
    settings = resolve_settings(GenerationOptions(temperature=0.5), {"temperature": 0.7, "top_p": 0.8, "top_k": None})
    assert settings == Settings(max_new_tokens=20, temperature=0.5, top_p=0.8, top_k=50)


def test_a_folder_written_by_transformers(tmp_path: Path) -> None:
    GenerationConfig(do_sample=True, temperature=0.6, top_k=20, top_p=0.95, eos_token_id=[1, 2]).save_pretrained(
        tmp_path
    )
    settings = resolve_settings(GenerationOptions(max_length=7), read_generation_config(tmp_path))
    assert settings == Settings(max_length=7, do_sample=True, temperature=0.6, top_k=20, top_p=0.95)


@pytest.mark.parametrize(
    ("given", "folder", "expected"),
    [
        ({}, {}, (20, None)),
        ({"max_length": 9}, {}, (None, 9)),
        ({"max_length": 9}, {"max_new_tokens": 5}, (None, 9)),
        ({"max_new_tokens": 3}, {"max_length": 9}, (3, 9)),
        ({}, {"max_length": 9}, (None, 9)),
        ({}, {"max_new_tokens": 5, "max_length": 9}, (5, 9)),
    ],
)
def test_the_length_that_counts(given: dict[str, int], folder: dict[str, int], expected: tuple[Any, Any]) -> None:
    settings = resolve_settings(GenerationOptions(**given), folder)
    assert (settings.max_new_tokens, settings.max_length) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_length", -1),
        ("max_length", True),
        ("do_sample", 1),
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", "1"),
        ("repetition_penalty", -2.0),
    ],
)
def test_values_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(PredictError, match=rf"option {name} is .*; it must be "):
        resolve_settings(GenerationOptions(), {name: value})


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_generation_config_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "generation_config.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(PredictError, match=r"generation_config\.json"):
        read_generation_config(tmp_path)


def test_no_generation_config_is_fine(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
    assert read_generation_config(None) == {}


@pytest.mark.parametrize(
    ("model", "folder", "expected"),
    [
        (ModelTask("yaml", OPTIONS, None), {"eos_token_id": 7}, {2, 3}),
        (ModelTask("folder", None, Path("x")), {"eos_token_id": 7}, {7}),
        (ModelTask("folder", None, Path("x")), {"eos_token_id": [7, 8]}, {7, 8}),
        (ModelTask("folder", None, Path("x")), {}, {2, 3}),
        (ModelTask("override", None, Path("x"), {"eos_token_ids": (2, 3)}), {"eos_token_id": 7}, {2, 3}),
    ],
)
def test_which_tokens_end_a_text(model: ModelTask, folder: dict[str, Any], expected: set[int]) -> None:
    assert resolve_eos_ids(model, OPTIONS, folder, 9) == expected


def test_the_tokenizers_end_token_is_the_last_resort() -> None:
    silent = ModelOptions(10, 8, 8, 1, 2, 2, 4, 32)
    assert resolve_eos_ids(ModelTask("yaml", silent, None), silent, {}, 9) == {9}
    assert resolve_eos_ids(ModelTask("yaml", silent, None), silent, {}, None) == set()


@pytest.mark.parametrize(
    ("settings", "prompt_length", "expected"),
    [
        (Settings(max_new_tokens=5), 10, 15),
        (Settings(max_new_tokens=50), 10, 32),
        (Settings(max_length=12), 10, 12),
        (Settings(max_length=100), 10, 32),
        (Settings(max_new_tokens=5, max_length=12), 10, 15),
    ],
)
def test_limits_of_texts(settings: Settings, prompt_length: int, expected: int) -> None:
    assert LengthLimit(settings, 32).of(prompt_length) == expected


@pytest.mark.parametrize(
    ("settings", "bound"),
    [(Settings(max_length=12), "max_length 12"), (Settings(max_new_tokens=5), "the model's 32 positions")],
)
def test_a_prompt_without_room_names_both_lengths(settings: Settings, bound: str) -> None:
    with pytest.raises(PredictError, match=f"prompt of 32 tokens .* within {bound}"):
        LengthLimit(settings, 32).of(32)


def test_a_clamp_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    lengths = LengthLimit(Settings(max_length=100), 32)
    with caplog.at_level(logging.WARNING):
        assert [lengths.of(3), lengths.of(4)] == [32, 32]
    assert [record.getMessage() for record in caplog.records] == [
        "max_length 100 reaches beyond the model's 32 positions: texts end there"
    ]


def test_an_unreadable_value_in_json_is_still_a_message(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_length": "long"}))
    with pytest.raises(PredictError, match="max_length is 'long'"):
        resolve_settings(GenerationOptions(), read_generation_config(tmp_path))
