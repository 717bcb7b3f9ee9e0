"""``python -m runformer preprocess`` with worker processes: the same bytes for any number, and after kill -9."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from byte_tokenizer import write_byte_tokenizer
from preparing import rows, same_files, spoken

from runformer.data.megatron.indexed import IndexedDataset
from runformer.tokenizer import load_tokenizer

WORDS = [
    "the",
    "sea",
    "is",
    "blue",
    "and",
    "so",
    "are",
    "days",
    "of",
    "words",
    "that",
    "nobody",
    "reads",
    "but",
    "machines",
]
SIZE = 10 << 20  # bytes of records: more than are encoded without starting processes


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, records and a tokenizer."""
    folder = tmp_path_factory.mktemp("inputs")
    write_byte_tokenizer(folder / "model")
    source = random.Random(1)
    with (folder / "records.jsonl").open("w") as file:
        size = 0
        while size < SIZE:
            output = " ".join(source.choices(WORDS, k=source.randrange(300)))
            size += file.write(json.dumps({"instruction": f"Say {size}.", "output": output}) + "\n")
    return folder


def command(inputs: Path, target: Path, *options: object) -> list[str]:
    words = ["--input", inputs / "records.jsonl", "--output", target, "--tokenizer", inputs / "model"]
    return [sys.executable, "-m", "runformer", "preprocess", *map(str, words), *map(str, options)]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_any_number_of_workers_writes_the_same_bytes(inputs: Path, tmp_path: Path) -> None:
    said = set()
    for workers in (1, 2, 4):
        (tmp_path / str(workers)).mkdir()
        options = ("--seq_length", 512, "--pack", "--workers", workers)
        done = run(command(inputs, tmp_path / str(workers) / "x", *options))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        said.add(done.stdout.replace(str(tmp_path / str(workers)), ""))
        assert sorted(path.name for path in (tmp_path / str(workers)).iterdir()) == ["x", "x.db"]
        assert same_files(tmp_path / "1" / "x", tmp_path / str(workers) / "x")
    assert len(said) == 1
    assert " of the tokens are real" in said.pop()


def test_killed_at_any_moment(inputs: Path, tmp_path: Path) -> None:
    """Megatron's files, since every byte of a document is in its place there."""
    options = ("--to", "megatron", "--append_eod", "--workers", 2, "--chunk_mb", 1)
    assert run(command(inputs, tmp_path / "whole", *options)).returncode == 0
    words = command(inputs, tmp_path / "killed", *options)
    target, work = tmp_path / "killed_text_document.bin", tmp_path / "killed_text_document.work"
    kills = 0
    moments = {"chunk-000000.json": 0.0, "chunk-000001.bin.tmp": 0.0, "chunk-000002.json": 0.05, "out": 0.0}
    for name, delay in moments.items():
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            while process.poll() is None and not (work / name).exists():
                time.sleep(0.005)
            time.sleep(delay)
            workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.kill()
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
        assert not target.exists() or same_files(target, tmp_path / "whole_text_document.bin")
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert alive == [], "workers outlive their main process"
    assert kills >= 3
    if work.exists():  # the last time it may have been all but done
        done = run(words)
        assert done.returncode == 0, done.stderr
        assert "going on behind" in done.stderr or "an earlier run had made the output" in done.stderr
    for suffix in ("bin", "idx"):
        assert same_files(tmp_path / f"whole_text_document.{suffix}", tmp_path / f"killed_text_document.{suffix}")
    assert not work.exists()
    assert len(IndexedDataset(tmp_path / "killed_text_document")) == (inputs / "records.jsonl").read_bytes().count(
        b"\n"
    )


def test_ctrl_c_leaves_no_traceback(inputs: Path, tmp_path: Path) -> None:
    words = command(inputs, tmp_path / "x", "--seq_length", 64, "--workers", 2, "--chunk_mb", 1)
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while not (tmp_path / "x.work" / "chunk-000000.json").exists():
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert not (tmp_path / "x").exists()


def test_a_worker_that_is_killed(inputs: Path, tmp_path: Path) -> None:
    words = command(inputs, tmp_path / "x", "--seq_length", 64, "--workers", 2, "--chunk_mb", 1)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "x.work" / "chunk-000000.json").exists():
            assert process.poll() is None
            time.sleep(0.005)
        workers = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
        workers[0].kill()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: a worker process died" in stderr
    assert "fewer --workers: it goes on where it stopped" in stderr
    assert run(words).returncode == 0
    assert (tmp_path / "x").exists()


def test_the_first_bad_record_is_the_one_named(inputs: Path, tmp_path: Path) -> None:
    lines = (inputs / "records.jsonl").read_text().splitlines()
    lines[9000], lines[200], lines[6000] = "[", '{"instruction": 3}', "{}"
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    words = command(inputs, tmp_path / "x", "--seq_length", 64, "--workers", 4)
    words[words.index("--input") + 1] = str(tmp_path / "bad.jsonl")
    done = run(words)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"error: {tmp_path / 'bad.jsonl'}: line 201: 'instruction' should be a text, not int\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl"]
    done = run([*words, "--skip_bad", "3"])
    assert done.returncode == 0, done.stderr
    assert f"bad records, left out and listed in {tmp_path / 'x.bad.jsonl'}: 3" in done.stdout


def test_samples_are_shown(inputs: Path, tmp_path: Path) -> None:
    records = [{"question": "Sky?", "answer": "blue"}, {"question": "Sea?", "answer": "green"}]
    (tmp_path / "one.json").write_text(json.dumps(records))
    mapping = ("--map", "instruction=question,output=answer")
    words = command(inputs, tmp_path / "x", "--seq_length", 24, "--show", 1, *mapping)
    words[words.index("--input") + 1] = str(tmp_path / "one.json")
    done = run(words)
    assert done.stdout.splitlines()[:3] == [
        "── sample 1: 12 tokens, 5 of them learnt",
        "<|user|>Sky?<|end|><|assistant|>⟦blue<|end|>⟧",
        "── ⟦ ⟧: learnt",
    ]
    wrong = run([*words, "--map", "instruction"])
    assert wrong.returncode == 2
    assert "'instruction' is not NAME=COLUMN" in wrong.stderr


@pytest.mark.slow
def test_a_long_line_in_little_memory(inputs: Path, tmp_path: Path) -> None:
    """The tokenizers library alone would take 140 bytes a byte of it."""
    text = " ".join(WORDS * 300_000)
    assert len(text) > 15_000_000
    with (tmp_path / "long.jsonl").open("w") as file:
        file.write(json.dumps({"text": "first"}) + "\n" + json.dumps({"text": text}) + "\n")
    words = command(inputs, tmp_path / "x", "--seq_length", 4096, "--workers", 1)
    words[words.index("--input") + 1] = str(tmp_path / "long.jsonl")
    limit = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, ({3 << 30},) * 2); "
    start = f"sys.argv = {words[2:]!r}; runpy.run_module('runformer', run_name='__main__')"
    done = run([sys.executable, "-c", limit + start])
    assert done.returncode == 0, done.stderr
    made = rows(tmp_path / "x")
    assert spoken(load_tokenizer(inputs / "model"), made[0]["input_ids"]).startswith("first<|end|>the sea is blue")
    assert len(made) == (len(text) + 7) // 4097
