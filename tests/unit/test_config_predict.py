"""From prompts, generation keys and the tokenizer section to PredictTask and TokenizerOptions."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_tasks import DATA, MODEL, load

from runformer.config import GenerationOptions, PredictTask, TokenizerOptions
from runformer.errors import ConfigError

TASK = f"run_mode: predict\nload_checkpoint: .\n{MODEL}"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def predict_of(folder: Path, text: str, *arguments: str) -> PredictTask:
    predict = load(folder, text, *arguments).predict
    assert predict is not None
    return predict


def error_of(folder: Path, text: str, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *arguments)
    return str(caught.value)


def test_defaults(tmp_path: Path) -> None:
    assert predict_of(tmp_path, TASK, "--predict_data", "hi") == PredictTask(
        inputs=("hi",),
        batch_size=None,
        chat=False,
        generation=GenerationOptions(None, 48, True, 1.0, 5, 1.0, 1.0),
        save_file=tmp_path / "text_generation_result.txt",
    )


@pytest.mark.parametrize(
    ("arguments", "inputs"),
    [
        (("a\\nb",), ("a\nb",)),
        (("a", "b c"), ("a", "b c")),
        (("prompts.txt",), ("prompts.txt",)),
        (("what is in notes.txt",), ("what is in notes.txt",)),
    ],
)
def test_prompts(tmp_path: Path, arguments: tuple[str, ...], inputs: tuple[str, ...]) -> None:
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    assert predict_of(tmp_path, TASK, "--predict_data", *arguments).inputs == inputs


def test_prompts_of_the_file_and_other_settings(tmp_path: Path) -> None:
    text = TASK + "input_data: [x, y]\npredict_batch_size: 2\nsave_file: out/r.txt\n"
    predict = predict_of(tmp_path, text, "--chat", "True")
    assert (predict.inputs, predict.batch_size, predict.chat) == (("x", "y"), 2, True)
    assert predict.save_file == tmp_path / "out/r.txt"
    assert predict_of(tmp_path, text, "--predict_data", "z", "--predict_batch_size", "1").inputs == ("z",)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "input_data is not set: --predict_data gives a prompt"),
        (("--predict_data", ""), "input_data is not set"),
        (("--predict_data", "gone.txt"), "input_data is 'gone.txt': there is no such file"),
        (("--predict_data", "x" * 5000 + ".txt"), "there is no such file"),
        (("--predict_data", "a", "--modal_type", "image"), "modal_type cannot be 'image': only text can be predicted"),
        (("--predict_data", "a", "--adapter_id", "x"), "adapter_id cannot be 'x'"),
        (("--predict_data", "a", "--predict_batch_size", "0"), "predict_batch_size must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_predicted(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    assert expected in error_of(tmp_path, TASK, *arguments)


def test_picking_tokens(tmp_path: Path) -> None:
    own = (
        "    max_decode_length: 32\n    top_k: 0\n    top_p: 0.8\n    repetition_penalty: 1.05\n    temperature: 0.7\n"
    )
    arguments = ("--predict_data", "a", "--do_sample", "False", "--model.model_config.max_new_tokens", "20")
    generation = predict_of(tmp_path, TASK + own, *arguments).generation
    assert generation == GenerationOptions(20, 32, False, 0.7, 0, 0.8, 1.05)


def test_a_length_beyond_the_sequence_is_cut_with_a_notice(tmp_path: Path) -> None:
    task = load(tmp_path, TASK + "    max_decode_length: 512\n", "--predict_data", "a")
    assert task.predict is not None
    assert task.predict.generation.max_length == 48
    assert "model.model_config.max_decode_length: cut to seq_length, 48" in task.notices


def test_folders_leave_to_the_folder_what_the_file_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    text = "run_mode: predict\npretrained_model_dir: hf\n"
    assert predict_of(tmp_path, text, "--predict_data", "a").generation == GenerationOptions()
    common = text + "generation_config: {max_length: 99, top_k: 3, do_sample: True}\n"
    generation = predict_of(tmp_path, common, "--predict_data", "a", "--do_sample", "False").generation
    assert generation == GenerationOptions(max_length=99, top_k=3, do_sample=False)
    assert "generation_config.num_beams cannot be 4" in error_of(
        tmp_path, text + "generation_config: {num_beams: 4}\n", "--predict_data", "a"
    )


def test_the_tokenizer_section(tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).touch()
    section = (
        "processor:\n  tokenizer:\n    type: Qwen2Tokenizer\n    vocab_file: vocab.json\n    merges_file: merges.txt\n"
        "    unk_token: None\n    eos_token: '<|im_end|>'\n    add_bos_token: False\n    chat_template: '{{ x }}'\n"
    )
    assert load(tmp_path, TASK + section, "--predict_data", "a").tokenizer == TokenizerOptions(
        kind="Qwen2Tokenizer",
        vocab_file=tmp_path / "vocab.json",
        merges_file=tmp_path / "merges.txt",
        special_tokens={"eos_token": "<|im_end|>"},
        add_bos_token=False,
        chat_template="{{ x }}",
    )


@pytest.mark.parametrize(
    "placeholder",
    ["path/vocab.json", "/path/to/tokenizer.model", "/.../tokenizer.model", "/{path}/t.model", "/home/common/x/t.json"],
)
def test_placeholders_of_published_recipes(tmp_path: Path, placeholder: str) -> None:
    section = f"processor: {{tokenizer: {{vocab_file: '{placeholder}'}}}}\n"
    task = load(tmp_path, TASK + section, "--predict_data", "a")
    assert task.tokenizer == TokenizerOptions()
    assert any("is a placeholder; the tokenizer beside the weights is taken" in notice for notice in task.notices)
    training = load(tmp_path, f"run_mode: train\n{DATA}{MODEL}{section}")
    assert training.tokenizer == TokenizerOptions()


def test_a_missing_tokenizer_matters_in_prediction_only(tmp_path: Path) -> None:
    section = "processor: {tokenizer: {vocab_file: tok/vocab.json}}\n"
    message = error_of(tmp_path, TASK + section, "--predict_data", "a")
    assert "processor.tokenizer.vocab_file is 'tok/vocab.json': there is no such file" in message
    assert load(tmp_path, f"run_mode: train\n{DATA}{MODEL}{section}").tokenizer.vocab_file is None


def test_one_file_serves_training_and_prediction(tmp_path: Path) -> None:
    text = f"run_mode: train\n{DATA}{MODEL}resume_training: True\n"
    (tmp_path / "output/checkpoint").mkdir(parents=True)
    training = load(tmp_path, text)
    predicting = load(tmp_path, text, "--run_mode", "predict", "--predict_data", "a", "--load_checkpoint", ".")
    assert (training.train is None, training.predict is None, training.load.resume) == (False, True, True)
    assert (predicting.train is None, predicting.predict is None, predicting.load.resume) == (True, False, False)
    assert training.model == predicting.model
