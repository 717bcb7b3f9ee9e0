"""BlendedMegatronDatasetDataLoader in a task file: what it sets, and what is told before anything is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from config_tasks import MODEL, load
from hypothesis import given
from hypothesis import strategies as st
from megatron_files import write_dataset

from runformer.config import Task
from runformer.config.shares import split_numbers
from runformer.config.task import DataOptions, DocumentOptions, MegatronFiles
from runformer.errors import ConfigError

CONFIG = "{seq_length: 48, split: '1, 0, 0', data_path: ['1', text]}"
LOADER = (
    "data_loader: {type: BlendedMegatronDatasetDataLoader, datasets_type: GPTDataset, sizes: [80, 8, 0], config: %s}"
)
PREFIX = "--train_dataset.data_loader"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text", "other"):
        write_dataset(tmp_path / name, [100])


def task_of(folder: Path, config: str = CONFIG, *arguments: str, mode: str = "train", section: str = "train") -> Task:
    text = f"run_mode: {mode}\n{section}_dataset:\n  {LOADER % config}\n{MODEL}"
    return load(folder, text, *arguments)


def data_of(folder: Path, config: str = CONFIG, *arguments: str) -> DataOptions:
    task = task_of(folder, config, *arguments)
    assert task.train is not None
    task.require_built()
    return task.train.data


def source_of(folder: Path, config: str = CONFIG, *arguments: str) -> MegatronFiles:
    source = data_of(folder, config, *arguments).source
    assert isinstance(source, MegatronFiles)
    return source


def error_of(folder: Path, config: str = CONFIG, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        task_of(folder, config, *arguments)
    return str(caught.value)


def test_what_a_plain_loader_sets(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    assert data.source == MegatronFiles(
        prefixes=(tmp_path / "text",),
        names=("text",),
        weights=(1.0,),
        size=80,
        sequence_length=48,
        split="1, 0, 0",
        part="train",
        seed=1234,
        pad=-1,
        extra_token=True,
        drop_last=True,
        cache=None,
    )
    assert data.paths == (tmp_path / "text.bin", tmp_path / "text.idx")
    assert (data.columns, data.shuffle, data.num_samples) == (("input_ids", "labels"), None, 80)
    assert (data.already_shifted, data.pad_token_id, data.ignore_token_id, data.documents) == (True, None, -100, None)


def test_every_key_reaches_the_task(tmp_path: Path) -> None:
    config = """{seq_length: 48, split: '6,3,1', data_path: [30, text, '70', other], seed: 7, pad: 9, eod: 2,
      add_extra_token_to_sequence: False, drop_last_partial_validation_sequence: False, path_to_cache: kept,
      eod_mask_loss: True, mmap_bin_files: True, num_dataset_builder_threads: 4, eod_pad_length: 64}"""
    data = data_of(tmp_path, config, f"{PREFIX}.phase", "valid", f"{PREFIX}.shuffle", "hashed")
    assert data.source == MegatronFiles(
        prefixes=(tmp_path / "text", tmp_path / "other"),
        names=("text", "other"),
        weights=(30.0, 70.0),
        size=8,
        sequence_length=48,
        split="6,3,1",
        part="valid",
        seed=7,
        pad=9,
        extra_token=False,
        drop_last=False,
        cache=tmp_path / "kept",
    )
    assert data.documents == DocumentOptions(eod=2, attention=False, positions=False, eod_counts=False)
    assert data.shuffle == "hashed"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("reset_position_ids: True", DocumentOptions(2, attention=False, positions=True)),
        ("reset_attention_mask: True", DocumentOptions(2, attention=True, positions=False)),
        ("create_compressed_eod_mask: True", DocumentOptions(2, attention=True, positions=False)),
        (
            "create_compressed_eod_mask: True, reset_attention_mask: True, create_attention_mask: False",
            DocumentOptions(2, attention=True, positions=False),
        ),
        ("create_attention_mask: True", None),
        ("reset_attention_mask: True, create_attention_mask: False", None),
    ],
)
def test_ends_of_documents(tmp_path: Path, keys: str, expected: DocumentOptions | None) -> None:
    config = f"{{split: '1', data_path: [text], eod: 2, {keys}}}"
    assert data_of(tmp_path, config).documents == expected
    told = [notice for notice in task_of(tmp_path, config).notices if "reset_attention_mask does nothing" in notice]
    assert bool(told) == (expected is None and "reset" in keys)


@pytest.mark.parametrize(
    ("listed", "names", "weights"),
    [
        ("[text]", ("text",), None),
        ("text", ("text",), None),
        ("[text, other]", ("text", "other"), None),
        ("[' text ', other, text]", ("text", "other", "text"), None),
        ("['0.3', text, '0.7', other]", ("text", "other"), (0.3, 0.7)),
        ("[2, text, 1, other]", ("text", "other"), (2.0, 1.0)),
    ],
)
def test_data_path(tmp_path: Path, listed: str, names: tuple[str, ...], weights: tuple[float, ...] | None) -> None:
    source = source_of(tmp_path, f"{{split: '1', data_path: {listed}}}")
    assert (source.names, source.weights, source.sequence_length) == (names, weights, 48)


def test_paths_of_each_part(tmp_path: Path) -> None:
    config = "{train_data_path: [1, text], valid_data_path: [1, text, 2, other]}"
    train = source_of(tmp_path, config)
    assert (train.names, train.weights, train.split, train.part) == (("text",), None, None, "train")
    valid = source_of(tmp_path, config, f"{PREFIX}.phase", "valid")
    assert (valid.names, valid.weights, valid.split, valid.size) == (("text", "other"), (1.0, 2.0), None, 8)


@pytest.mark.parametrize(
    ("sizes", "split", "part", "size"),
    [
        ("[80, 8, 0]", "9,1,0", "valid", 8),
        ("[80, 0, 0]", "1,0,0", "train", 80),
        ("[80]", "1,0,0", "train", 80),
        ("[80, null, 0]", "9,1,0", "valid", None),
    ],
)
def test_evaluation_takes_the_part_for_validation(
    tmp_path: Path, sizes: str, split: str, part: str, size: int | None
) -> None:
    config = f"{{split: '{split}', data_path: [text]}}"
    arguments = ("--eval_dataset.data_loader.sizes", sizes, "--load_checkpoint", "text.bin")
    task = task_of(tmp_path, config, *arguments, mode="eval", section="eval")
    assert task.evaluation is not None
    source = task.evaluation.data.source
    assert isinstance(source, MegatronFiles)
    assert (source.part, source.size) == (part, size)


@pytest.mark.parametrize(
    ("config", "arguments", "expected"),
    [
        ("{split: '1', data_path: [gone]}", (), "data_path is 'gone.idx': there is nothing at gone.idx"),
        (
            "{split: '1', data_path: [1, gone]}",
            (),
            "(--train_dataset.data_loader.config.data_path.1 PATH gives another)",
        ),
        ("{split: '1', data_path: [1, text, 2, /path/to/x]}", (), "'/path/to/x.idx': replace this placeholder"),
        ("{split: '1', data_path: ['s3://bucket/x']}", (), "is 's3://bucket/x': datasets are read from files"),
        ("{split: '1', data_path: [1, text, a, other]}", (), "has 'a' where a weight should stand"),
        ("{split: '1', data_path: [-1, text]}", (), "has '-1' where a weight should stand"),
        ("{split: '1', data_path: [0, text, 1, other]}", (), "has '0' where a weight should stand"),
        ("{split: '1', data_path: []}", (), "data_path is not set: it names the datasets, without .bin and .idx"),
        ("{split: '1'}", (), "data_path is not set"),
        ("{data_path: [text]}", (), "config.split is not set: '1, 0, 0' uses all documents for training"),
        ("{split: 'a, b', data_path: [text]}", (), "must be one to three shares, such as '969, 30, 1', not 'a, b'"),
        ("{split: '1,1,1,1', data_path: [text]}", (), "must be one to three shares"),
        ("{split: '0,0', data_path: [text]}", (), "must be one to three shares"),
        ("{split: '0,1', data_path: [text]}", (), "is '0,1': it leaves nothing for train"),
        (
            "{split: '1', data_path: [text], seq_length: 32}",
            (),
            "seq_length is 32, but model.model_config.seq_length is 4",
        ),
        ("{split: '1', data_path: [text], eod_mask_loss: True}", (), "eod is not set: documents cannot be told apart"),
        (
            "{split: '1', data_path: [text], eod_mask_loss: True, eod: 3, pad: 3}",
            (),
            "eod and pad are both 3: the ends of documents would be padding",
        ),
        (
            "{split: '1', data_path: [text], s3_cache_path: x}",
            (),
            "s3_cache_path cannot be 'x': datasets are read from",
        ),
        ("{split: '1', data_path: [text], seed: -1}", (), "seed must be at least 0, not -1"),
        ("{split: '1', data_path: [text], seq_len: 4}", (), "seq_len is not a known key"),
        (
            CONFIG,
            (f"{PREFIX}.datasets_type", "BERTDataset"),
            "datasets_type must be one of GPTDataset, not 'BERTDataset'",
        ),
        (CONFIG, (f"{PREFIX}.phase", "dev"), "phase must be one of train, valid, test, not 'dev'"),
        (CONFIG, (f"{PREFIX}.sizes", "[0, 5, 0]"), "sizes asks for no sample of train, whose number is the first"),
        (CONFIG, (f"{PREFIX}.sizes", "[1, 2, 3, 4]"), "sizes has 4 numbers: it is three, such as [8000, 0, 0]"),
        (CONFIG, (f"{PREFIX}.sizes", "[-5, 0, 0]"), "sizes must be at least 0, not -5"),
        (
            CONFIG,
            (f"{PREFIX}.sizes", "[null, 0, 0]"),
            "sizes has no number for train, which datasets with weights need",
        ),
        (
            CONFIG,
            ("--train_dataset.input_columns", "[input_ids, label]"),
            "input_columns has 'label': did you mean 'labels'? This loader has input_ids, labels, loss_mask",
        ),
    ],
)
def test_mistakes_are_told(tmp_path: Path, config: str, arguments: tuple[str, ...], expected: str) -> None:
    assert expected in error_of(tmp_path, config, *arguments)


def test_a_missing_half_of_a_dataset_is_named(tmp_path: Path) -> None:
    Path("text.bin").unlink()
    assert "is 'text.bin': there is nothing at text.bin" in error_of(tmp_path)


def test_sizes_are_asked_for(tmp_path: Path) -> None:
    text = f"run_mode: train\ntrain_dataset:\n  {LOADER % CONFIG}\n{MODEL}".replace("sizes: [80, 8, 0], ", "")
    with pytest.raises(ConfigError, match=r"task.yaml:3:16: train_dataset.data_loader.sizes is not set: it is three"):
        load(tmp_path, text)


def test_a_plan_only_notes_what_is_missing(tmp_path: Path) -> None:
    config = "{split: '1', data_path: [1, /path/to/a, 1, /path/to/b]}"
    task = task_of(tmp_path, config, "--dry_run", "True")
    assert task.train is not None
    assert task.train.data.paths == ()
    key = "train_dataset.data_loader.config.data_path"
    text = f"is '/path/to/a.idx': replace this placeholder (--{key}.1 PATH gives another)"
    assert task.to_fill_in == {key: text}


def test_keys_of_another_loader_have_no_effect(tmp_path: Path) -> None:
    task = task_of(tmp_path, CONFIG, f"{PREFIX}.type", "MindDataset", "--train_dataset_dir", "rows.mindrecord")
    told = task.without_effect["belongs to another data loader"]
    assert {f"train_dataset.data_loader.{key}" for key in ("config", "datasets_type", "sizes")} <= set(told)
    columns = "[input_ids, labels, loss_mask, position_ids, actual_seq_len]"
    megatron = task_of(tmp_path, CONFIG, "--train_dataset.input_columns", columns)
    assert "belongs to another data loader" not in megatron.without_effect
    assert megatron.train is not None
    assert replace(megatron.train.data) == data_of(tmp_path)


@given(st.lists(st.floats(0, 1e6) | st.integers(0, 1000), min_size=1, max_size=4))
def test_splits_are_read_as_they_are_written(numbers: list[Any]) -> None:
    text = ", ".join(map(str, numbers))
    if len(numbers) == 4 or sum(numbers) <= 0:
        with pytest.raises(ValueError, match="is not one to three shares"):
            split_numbers(text)
    else:
        assert split_numbers(f"[{text}]") == [*map(float, numbers), *[0.0] * (3 - len(numbers))]


@given(st.text(max_size=12))
def test_any_text_is_a_split_or_an_error(text: str) -> None:
    try:
        numbers = split_numbers(text)
    except ValueError:
        return
    assert len(numbers) == 3
    assert all(0 <= number < float("inf") for number in numbers)
