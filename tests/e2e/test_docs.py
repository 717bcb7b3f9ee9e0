"""The examples in the documentation, run as they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from runformer.config.task import Precision
from runformer.data.mindrecord import Column, MindRecordReader, MindRecordWriter
from runformer.models.build import build_model, initialise
from runformer.models.families import options_from_config

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHRINK = (
    "--model.model_config.num_layers 2 --model.model_config.hidden_size 56 --model.model_config.intermediate_size 64 "
    "--model.model_config.seq_length 32 --model.model_config.vocab_size 128 --model.model_config.pad_token_id 0"
)


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def run_block(block: str, repository: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(block.replace("\\\n", " "))
    assert words[0] == "python", block
    words = [sys.executable, *(str(repository / w) if w == "run_mindformer.py" else w for w in words[1:])]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, block + done.stderr + done.stdout
    return done


def write_model_folder(folder: Path) -> None:
    """A random Llama with a byte-level tokenizer and a chat template, as Hugging Face lays it out."""
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["output checkpoint training step one file goes"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHAT_TEMPLATE}))
    config = {
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = build_model(options_from_config(config, "config.json"), Precision(), torch.device("cpu"))
    initialise(model, 0)
    save_file({name: p.detach() for name, p in model.named_parameters()}, folder / "model.safetensors")


def test_quickstart(repository: Path, tmp_path: Path) -> None:
    document = repository / "docs/quickstart.md"
    write_model_folder(tmp_path / "model")
    (tmp_path / "instructions.json").write_text(blocks(document, "json")[0])
    (tmp_path / "finetune.yaml").write_text(blocks(document, "yaml")[0])
    preprocess, plan, finetune, resume, evaluate, ask, lora, explain = blocks(document, "bash")
    run_block(preprocess, repository, tmp_path)
    assert "4 steps: 2 an epoch × 2" in run_block(plan, repository, tmp_path).stdout
    run_block(finetune, repository, tmp_path)
    assert len((tmp_path / "output/training.jsonl").read_text().splitlines()) == 4
    assert "resuming after step 4" in run_block(resume, repository, tmp_path).stdout
    assert len((tmp_path / "output/training.jsonl").read_text().splitlines()) == 6
    assert "evaluation after step 6: loss " in run_block(evaluate, repository, tmp_path).stdout
    answer = run_block(ask, repository, tmp_path).stdout
    assert "Where do checkpoints go?" in answer
    assert (tmp_path / "text_generation_result.txt").read_text().startswith("[{'text_generation_text': [")
    run_block(lora, repository, tmp_path)
    assert len((tmp_path / "output_lora/training.jsonl").read_text().splitlines()) == 4
    assert run_block(explain, repository, tmp_path).stdout.startswith("runner_config.epochs: an integer")


def test_from_a_json_file_to_a_running_task_in_five_commands(repository: Path, tmp_path: Path) -> None:
    document = repository / "docs/data.md"
    write_model_folder(tmp_path / "model")
    (tmp_path / "chats.json").write_text(blocks(document, "json")[0])
    (tmp_path / "finetune.yaml").write_text(blocks(document, "yaml")[0])
    preprocess, show, stats, plan, finetune = blocks(document, "bash")
    made = run_block(preprocess, repository, tmp_path).stdout
    assert "Into output/checkpoint." in made  # the sample that is shown
    shown = run_block(show, repository, tmp_path).stdout
    assert "actual_seq_len" in shown
    assert "One YAML file." in shown
    assert "padding" in run_block(stats, repository, tmp_path).stdout
    rows = len(MindRecordReader(tmp_path / "train.mindrecord"))
    assert f"{3 * rows} steps: {rows} an epoch × 3" in run_block(plan, repository, tmp_path).stdout
    run_block(finetune, repository, tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "output/training.jsonl").read_text().splitlines()]
    assert len(losses) == 3 * rows
    assert losses[-1] < losses[0]


def test_the_published_single_card_command(repository: Path, tmp_path: Path) -> None:
    """Word for word, on a dataset of ours; appended overrides make the 0.5B model small enough for a test."""
    command, _ = blocks(repository / "docs/from_mindformers.md", "bash")
    (tmp_path / "path").mkdir()
    random = np.random.default_rng(0)
    columns = {name: Column("int32", (-1,)) for name in ("input_ids", "target_ids", "attention_mask")}
    with MindRecordWriter(tmp_path / "path/alpaca-data.mindrecord", columns) as writer:
        for _ in range(24):
            row = random.integers(1, 128, 33, dtype=np.int32)
            writer.write([{"input_ids": row, "target_ids": row, "attention_mask": np.ones(33, np.int32)}])
    done = run_block(f"{command.strip()} {SHRINK}", repository, tmp_path)
    assert "research/qwen2_5" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "output/training.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 7))  # 24 rows, 8 a step by accumulation, 2 epochs


def test_the_published_plan_for_two_machines(repository: Path, tmp_path: Path) -> None:
    document = repository / "docs/from_mindformers.md"
    _, command = blocks(document, "bash")
    told = run_block(command, repository, tmp_path).stdout.splitlines()
    (shown,) = re.findall(r"^```\n(devices .*?)^```", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert all(line in told for line in shown.splitlines())


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/data.md",
        "docs/quickstart.md",
        "docs/from_mindformers.md",
        "docs/plugins.md",
        "benchmarks/README.md",
    ],
)
def test_links_lead_somewhere(document: str, repository: Path) -> None:
    path = repository / document
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_the_readme_names_make_targets_that_exist(repository: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (repository / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"^make (\w+)", (repository / "README.md").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= targets
    assert os.access(repository / ".ci/run", os.X_OK)
