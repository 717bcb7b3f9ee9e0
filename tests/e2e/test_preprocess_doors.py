"""MindFormers' preprocessing scripts, by their own paths and flags."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from byte_tokenizer import write_byte_tokenizer
from preparing import rows, spoken

from runformer.data.megatron.indexed import IndexedDataset
from runformer.tokenizer import Tokenizer, load_tokenizer

LLAMA = "mindformers/tools/dataset_preprocess/llama"
CONVERTER, LLAMA_SCRIPT = f"{LLAMA}/alpaca_converter.py", f"{LLAMA}/llama_preprocess.py"
QWEN_SCRIPT = "research/qwen2/qwen2_preprocess.py"
MEGATRON_SCRIPT = "toolkit/data_preprocess/megatron/preprocess_indexed_dataset.py"

Door = Callable[..., str]


@pytest.fixture
def door(repository: Path, tmp_path: Path) -> Door:
    def run(script: str, *words: object) -> str:
        command = [sys.executable, repository / script, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(write_byte_tokenizer(tmp_path / "model"))


def test_llama_from_alpaca(door: Door, tokenizer: Tokenizer, tmp_path: Path) -> None:
    records = [{"instruction": "Sky?", "input": "day", "output": "blue"}, {"instruction": "Sea?", "output": "green"}]
    (tmp_path / "alpaca.json").write_text(json.dumps(records))
    door(CONVERTER, "--data_path", "alpaca.json", "--output_path", "talks.json")
    talks = json.loads((tmp_path / "talks.json").read_text())
    assert [talk["id"] for talk in talks] == ["1", "2"]
    (human, gpt), _ = (talk["conversations"] for talk in talks)
    assert human["value"].endswith("### Instruction:\nSky?\n\n### Input:\nday\n\n### Response:")
    assert (human["from"], gpt) == ("human", {"from": "gpt", "value": "blue"})

    flags = ["--dataset_type", "qa", "--input_glob", "talks.json", "--model_file", tokenizer.file]
    said = door(LLAMA_SCRIPT, *flags, "--output_file", "qa.mindrecord", "--seq_length", 500)
    assert "wrote 2 records of 500 + 1 tokens" in said
    first, second = rows(tmp_path / "qa.mindrecord")
    assert sorted(first) == ["input_ids", "labels"]
    assert [spoken(tokenizer, row["labels"]) for row in (first, second)] == [" blue<|end|>", " green<|end|>"]
    text = spoken(tokenizer, first["input_ids"])
    assert text.startswith("A chat between a curious user and an artificial intelligence assistant.")
    assert f" USER: {human['value']} ASSISTANT: blue<|end|>" in text


def test_llama_from_text(door: Door, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"wiki{number}.tokens").write_text(f" = Title {number} = \n \n Some text .\n")
    flags = ["--dataset_type", "wiki", "--input_glob", "wiki?.tokens", "--model_file", tokenizer.file]
    flags += ["--output_file", "wiki.mindrecord", "--seq_length", 9, "--file_partition", 2, "--repeat", 2]
    door(LLAMA_SCRIPT, *flags, "--samples_num", 10)
    made = rows(tmp_path / "wiki.mindrecord0")
    assert len(made) == 10
    assert all(list(row) == ["input_ids"] and len(row["input_ids"]) == 10 for row in made)
    whole = "".join(f" = Title {n} = <|end|> Some text .<|end|>" for n in (1, 2, 1, 2))
    tokens = tokenizer.encode(whole)
    assert sorted(row["input_ids"].tolist() for row in made) == sorted(tokens[n : n + 10] for n in range(0, 100, 10))


def test_qwen2(door: Door, tmp_path: Path) -> None:
    """Nothing is masked but padding, as there."""
    backend = tokenizers.Tokenizer.from_file(str(write_byte_tokenizer(tmp_path / "model") / "tokenizer.json"))
    backend.model.save(str(tmp_path))
    messages = [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "blue"}]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"type": "chatml", "messages": messages}) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    flags = ["--dataset_type", "qa", "--input_glob", "talks.jsonl", "--vocab_file", "vocab.json"]
    flags += ["--merges_file", "merges.txt", "--seq_length", 200]
    door(QWEN_SCRIPT, *flags, "--output_file", "qa.mindrecord")
    (row,) = rows(tmp_path / "qa.mindrecord")
    loaded = load_tokenizer(tmp_path)
    text = spoken(loaded, row["target_ids"])
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\nblue<|im_end|>\n"
    )
    real = int(row["attention_mask"].sum())
    assert row["attention_mask"].tolist() == [1] * real + [0] * (201 - real)
    assert row["input_ids"][:real].tolist() == row["target_ids"][:real].tolist() == loaded.encode(text)
    assert set(row["target_ids"][real:].tolist()) == {-100}


def test_megatron(door: Door, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "abc", "title": "d"}\n{"text": "ef", "title": "g"}\n')
    (tmp_path / "out").mkdir()
    flags = ["--input", "x.jsonl", "--output-prefix", "out/x", "--tokenizer-dir", "model", "--append-eod"]
    flags += ["--tokenizer-type", "HuggingFaceTokenizer", "--workers", "2", "--partitions", "1", "--seq-length", "8"]
    door(MEGATRON_SCRIPT, *flags, "--json-keys", "text", "title")
    dataset = IndexedDataset(tmp_path / "out" / "x_text_document")
    assert [spoken(tokenizer, dataset[number]) for number in range(2)] == ["abc<|end|>", "ef<|end|>"]
    assert dataset[0].dtype == np.int32
    titles = IndexedDataset(tmp_path / "out" / "x_title_document")
    assert [spoken(tokenizer, titles[number]) for number in range(2)] == ["d<|end|>", "g<|end|>"]


def test_mistakes_are_one_message(repository: Path, tmp_path: Path) -> None:
    for script, words in (
        (CONVERTER, ["--data_path", "none.json"]),
        (LLAMA_SCRIPT, ["--input_glob", "none.txt", "--output_file", "x", "--model_file", "none.model"]),
        (LLAMA_SCRIPT, ["--input_glob", "x", "--output_file", "x", "--model_file", "x", "--seq_length", "0"]),
        (LLAMA_SCRIPT, ["--input_glob", "x", "--output_file", "x", "--model_file", "x", "--samples_num", "-5"]),
    ):
        done = subprocess.run(
            [sys.executable, repository / script, *words], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode in (1, 2)
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []
