"""Whole predict tasks: the case that MindFormers itself ran, and what a user can get wrong."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runformer.config.task import (
    DeviceOptions,
    GenerationOptions,
    LoadOptions,
    ModelTask,
    PredictTask,
    Task,
    TokenizerOptions,
)
from runformer.errors import CheckpointError, PredictError, TokenizerError
from runformer.models.families import options_from_config
from runformer.observe import close_logging
from runformer.predict.run import predict


@pytest.fixture
def case(oracle_dir: Path) -> Path:
    return oracle_dir / "predict_greedy"


@pytest.fixture(autouse=True)
def _log_files_are_closed() -> Iterator[None]:
    yield
    close_logging()


@pytest.fixture
def task(case: Path, tmp_path: Path) -> Task:
    """What the case's YAML and command line mean."""
    config = json.loads((case / "init_hf" / "config.json").read_text())
    options = options_from_config(config, "config.json")
    generation = GenerationOptions(
        max_length=48, do_sample=False, temperature=1.0, top_k=1, top_p=1.0, repetition_penalty=1.0
    )
    return Task(
        run_mode="predict",
        config_file=case / "config.yaml",
        output_dir=tmp_path / "output",
        seed=42,
        device=DeviceOptions("cpu"),
        compile="never",
        model=ModelTask("tiny_qwen2", options, None, sequence_length=48),
        tokenizer=TokenizerOptions(tokenizer_file=case / "tokenizer" / "tokenizer.json"),
        load=LoadOptions(case / "init"),
        train=None,
        predict=PredictTask((str(case / "prompts.txt"),), 4, False, generation, tmp_path / "result.txt"),
    )


def with_predict(task: Task, **changes: Any) -> Task:
    assert task.predict is not None
    return replace(task, predict=replace(task.predict, **changes))


def saved(task: Task) -> Any:
    assert task.predict is not None
    return ast.literal_eval(task.predict.save_file.read_text(encoding="utf-8"))


def test_the_result_file_is_the_originals_byte_for_byte(task: Task, case: Path) -> None:
    predict(task)
    assert task.predict is not None
    assert task.predict.save_file.read_bytes() == (case / "text_generation_result.txt").read_bytes()


@pytest.mark.parametrize("weights", ["init_hf", "init_hf/model.safetensors", "init/model.safetensors"])
def test_one_by_one_gives_the_same_texts_in_dicts_of_their_own(task: Task, case: Path, weights: str) -> None:
    predict(with_predict(replace(task, load=LoadOptions(case / weights)), batch_size=None))
    expected = ast.literal_eval((case / "text_generation_result.txt").read_text())[0]["text_generation_text"]
    assert saved(task) == [{"text_generation_text": [text]} for text in expected]


def test_a_folder_alone_describes_model_tokenizer_and_generation(task: Task, case: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(case / "init_hf", folder)
    for file in (case / "tokenizer").iterdir():
        shutil.copy(file, folder)
    (folder / "generation_config.json").write_text('{"max_new_tokens": 4, "top_k": null, "transformers_version": "5"}')
    model = ModelTask("folder", None, folder)
    alone = replace(task, model=model, load=LoadOptions(), tokenizer=TokenizerOptions())
    predict(with_predict(alone, inputs=("The quiet teacher",), batch_size=1, generation=GenerationOptions()))
    assert saved(task) == [{"text_generation_text": ["The quiet teacher."]}]


def test_people_see_each_prompt_with_its_answer(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    predict(task)
    shown = capsys.readouterr().out
    assert "[1] Question: what colour is the old cat? Answer:\n→ the cat is black." in shown
    assert " tokens/s" in shown
    log = (task.output_dir / "log" / "rank_0" / "info.log").read_text()
    assert "generated 18 tokens" in log


def test_sampling_does_not_depend_on_the_batch(task: Task) -> None:
    hot = GenerationOptions(max_new_tokens=12, do_sample=True, temperature=3.0, top_k=0)
    texts = []
    for batch_size in (1, 2, 4):
        predict(with_predict(task, generation=hot, batch_size=batch_size))
        texts.append([text for batch in saved(task) for text in batch["text_generation_text"]])
    assert texts[0] == texts[1] == texts[2]
    predict(replace(with_predict(task, generation=hot), seed=43))
    assert saved(task)[0]["text_generation_text"] != texts[0]


def test_prompts_that_do_not_fill_batches(task: Task) -> None:
    with pytest.raises(PredictError, match="number of prompts, 4, is no multiple of the batch size 3"):
        predict(with_predict(task, batch_size=3))


def test_a_prompt_longer_than_the_text_may_be(task: Task) -> None:
    with pytest.raises(PredictError, match="prompt of 11 tokens leaves no room for an answer within max_length 9"):
        predict(with_predict(task, generation=GenerationOptions(max_length=9)))
    assert not (task.output_dir / "result.txt").exists()


def test_max_length_beyond_the_sequence_is_clamped_with_a_line_on_the_log(task: Task) -> None:
    predict(with_predict(task, generation=GenerationOptions(max_length=1000)))
    log = (task.output_dir / "log" / "rank_0" / "info.log").read_text()
    assert log.count("max_length 1000 reaches beyond the model's 48 positions") == 1


def test_a_vocabulary_smaller_than_a_token(task: Task) -> None:
    assert task.model.options is not None
    small = replace(task.model, options=replace(task.model.options, vocab_size=300))
    with pytest.raises(TokenizerError, match="token ids up to 511, but the model's vocabulary ends at 299"):
        predict(with_predict(replace(task, model=small), batch_size=None))


def test_a_chat_without_a_template(task: Task) -> None:
    with pytest.raises(PredictError, match="chat template"):
        predict(with_predict(task, chat=True))


def test_a_chat_is_rendered_by_the_template(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    template = (
        "{{ messages[0]['role'] }}: {{ messages[0]['content'] }}{% if add_generation_prompt %} Answer:{% endif %}"
    )
    options = replace(task.tokenizer, chat_template=template)
    asked = with_predict(replace(task, tokenizer=options), inputs=("what colour?",), batch_size=None, chat=True)
    predict(asked)
    assert saved(task)[0]["text_generation_text"][0].startswith("user: what colour? Answer:")
    assert "[1] what colour?\n→ " in capsys.readouterr().out


def test_no_weights_and_no_tokenizer(task: Task, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights to predict with"):
        predict(replace(task, load=LoadOptions()))
    with pytest.raises(TokenizerError):
        predict(replace(task, tokenizer=TokenizerOptions()))
    with pytest.raises(CheckpointError, match="nowhere"):
        predict(replace(task, load=LoadOptions(tmp_path / "nowhere")))


def test_a_failed_run_leaves_the_last_result(task: Task) -> None:
    predict(task)
    before = saved(task)
    with pytest.raises(PredictError):
        predict(with_predict(task, inputs=("missing.txt",)))
    assert saved(task) == before
