"""Samples, their order and the files that keep it are those of Megatron-core and MindFormers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_files import files, write_dataset

from runformer.data import IGNORED
from runformer.data.megatron.blending import blending_indices, exhaustive_blending_indices
from runformer.data.megatron.records import MegatronRecords
from runformer.data.megatron.samples import GPTSamples

ORACLE: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "oracle" / "megatron" / "samples.json").read_text(encoding="utf-8")
)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def _datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle's datasets in the current folder, by the names it knows them."""
    monkeypatch.chdir(tmp_path)
    for name, lengths in ORACLE["datasets"].items():
        write_dataset(Path(name), lengths)


def test_datasets_are_byte_for_byte_those_of_megatron() -> None:
    for name, expected in ORACLE["files"].items():
        assert sha(Path(name).read_bytes()) == expected, name


def check_rows(records: MegatronRecords, numbers: list[int], expected: dict[str, Any]) -> None:
    length = len(expected["tokens"][0])
    inputs, labels = records.read_rows(numbers, ("input_ids", "labels"), length)
    counts = np.array(expected["counts"]) == 1
    assert inputs.tolist() == expected["tokens"]
    assert labels.tolist() == np.where(counts, expected["labels"], IGNORED).tolist()


@pytest.mark.parametrize("expected", ORACLE["single"], ids=lambda expected: str(expected["case"]))
def test_one_dataset(expected: dict[str, Any]) -> None:
    name, length, seed, samples, split, part, extra, drop_last = expected["case"]
    options = files(
        [name],
        size=samples,
        sequence_length=length,
        split=split,
        part=part,
        seed=seed,
        extra_token=extra,
        drop_last=drop_last,
        cache=Path("cache"),
    )
    ours = GPTSamples(options, 0, samples)
    for array, head in expected["heads"].items():
        assert getattr(ours, array)[:6].tolist() == head
        (path,) = Path("cache").glob(f"*-GPTDataset-{part}-{array}.npy")
        assert sha(path.read_bytes()) == expected["files"][array], array
    theirs = json.loads(expected["description"])
    assert json.loads(json.dumps(ours.identifiers)) == theirs | {"tokenizer": None}
    check_rows(MegatronRecords(options), expected["rows"], expected)


@pytest.mark.parametrize("expected", ORACLE["blending"], ids=lambda expected: str(len(expected.get("weights", "x"))))
def test_blends(expected: dict[str, Any]) -> None:
    if "weights" in expected:
        of, number = blending_indices(expected["weights"], expected["size"])
    else:
        of, number = exhaustive_blending_indices(expected["sizes"])
    assert (of.dtype, number.dtype) == (np.int16, np.int64)
    assert of[:30].tolist() == expected["head"]
    assert (sha(of.tobytes()), sha(number.tobytes())) == (expected["datasets"], expected["samples"])


@pytest.mark.parametrize("expected", ORACLE["mindformers"], ids=lambda expected: str(expected["case"]))
def test_what_mindformers_builds(expected: dict[str, Any]) -> None:
    """The files are those of MindFormers, too: it finds ours, and we find those it made."""
    path, paths, sizes, split, part, length, extra, cache = expected["case"]
    place = ["train", "valid", "test"].index(part)
    blend = path or paths[place]
    weighted = len(blend) % 2 == 0 and blend[0][0].isdigit()
    names = blend[1::2] if weighted else blend
    weights = tuple(map(float, blend[::2])) if weighted and (path or len(names) > 1) else None
    options = files(
        names,
        weights,
        sizes[place],
        sequence_length=length,
        split=split,
        part=part,
        extra_token=extra,
        cache=cache and Path(cache),
    )
    records = MegatronRecords(options)
    assert len(records) == expected["length"]
    check_rows(records, list(range(len(expected["tokens"]))), expected)
    for name, content in expected["files"].items():
        found = Path(name).read_text() if name.endswith(".txt") else sha(np.load(name).astype(np.int64).tobytes())
        assert found == content, name


def test_indices_of_megatrons_tools_are_read(caplog: pytest.LogCaptureFixture) -> None:
    """They know a tokenizer, which is in the names of their files."""
    expected = ORACLE["single"][0]
    options = files(["text"], size=5, cache=Path("cache"))
    made = GPTSamples(options, 0, 5).shuffle_index.tolist()
    theirs = Path("cache")
    for path in list(theirs.iterdir()):
        path.rename(theirs / f"{expected['hash']}{path.name[32:]}")
    shuffled = theirs / f"{expected['hash']}-GPTDataset-train-shuffle_index.npy"
    np.save(shuffled, np.load(shuffled)[::-1].copy())  # a mark
    (theirs / f"{expected['hash']}-GPTDataset-train-description.txt").write_text(expected["description"])
    again = GPTSamples(options, 0, 5)
    assert again.shuffle_index.tolist() == made[::-1]
    assert len(list(theirs.iterdir())) == 4
    assert not caplog.records
    other_seed = GPTSamples(files(["text"], size=5, cache=Path("cache"), seed=2), 0, 5)
    assert other_seed.shuffle_index.tolist() != again.shuffle_index.tolist()
    assert len(list(theirs.iterdir())) == 8
