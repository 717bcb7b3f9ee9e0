"""``python -m runformer preprocess`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from byte_tokenizer import write_byte_tokenizer

from runformer.config.task import DataOptions, MindRecordFiles
from runformer.data.dataset import TokenDataset

RECORDS = [{"instruction": f"Count to {n}.", "input": "", "output": " ".join(map(str, range(n)))} for n in range(12)]


def runformer(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runformer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str | Path]:
    (tmp_path / "records.json").write_text(json.dumps(RECORDS))
    folder = write_byte_tokenizer(tmp_path / "model")
    named = {"--input": tmp_path / "records.json", "--output": tmp_path / "x.mindrecord", "--tokenizer": folder}
    return ["preprocess", *(word for pair in named.items() for word in pair), "--seq_length", "32"]


def test_what_it_writes_can_be_trained_on(arguments: list[str | Path], tmp_path: Path) -> None:
    done = runformer(*arguments)
    assert done.returncode == 0, done.stderr
    assert "wrote 12 records of 32 + 1 tokens" in done.stdout
    assert "longer records, cut to this length: 2" in done.stdout
    options = DataOptions(
        MindRecordFiles((tmp_path / "x.mindrecord",)), ("input_ids", "labels"), None, 0, pad_token_id=0
    )
    dataset = TokenDataset(options, 32, 260)
    batch = dataset.rows(range(len(dataset)))
    assert len(batch) == 12
    assert not batch.needs_key_mask
    # The answer's tokens and the end token are learnt: "" and "0 1 2" here.
    assert (batch.labels_BL != -100).sum(dim=1).tolist()[:4:3] == [1, 6]


def test_errors_are_one_message_without_traceback(arguments: list[str | Path], tmp_path: Path) -> None:
    assert runformer(*arguments).returncode == 0
    before = (tmp_path / "x.mindrecord").read_bytes()
    again = runformer(*arguments)
    assert again.returncode == 1
    assert again.stderr.splitlines() == [
        f"error: {tmp_path / 'x.mindrecord'} exists already",
        "  hint: delete it or choose another name",
    ]
    assert (tmp_path / "x.mindrecord").read_bytes() == before


def test_a_wrong_command_line() -> None:
    assert runformer().returncode == 2
    assert "invalid choice: 'postprocess'" in runformer("postprocess").stderr
    wrong = runformer("preprocess", "--input", "a", "--output", "b", "--tokenizer", "c", "--seq_length", "0")
    assert wrong.returncode == 2
    assert "'0' should be a whole number from 1 on" in wrong.stderr
