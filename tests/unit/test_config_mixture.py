"""Mixtures in a task file: what they mean, and what is said of what they cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from config_tasks import load
from hypothesis import given, settings
from hypothesis import strategies as st
from table_tasks import FILES, LENGTH, Keys, data_of, error_of, task_of, text_of

from runformer.config.data_sources import (
    MethodOptions,
    Mixture,
    MixturePart,
    PackOptions,
    TableFiles,
)
from runformer.config.resolve_mixture import _shares
from runformer.config.task import (
    DataOptions,
    DocumentOptions,
    MindRecordFiles,
)
from runformer.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


TAKE = {"type": "take", "n": 1}
TEXT, PACK = {"type": "TextDataHandler"}, {"type": "PackingHandler"}
MIND: Keys = {"type": "MindDataset", "dataset_dir": "rows.mindrecord"}
TABLE: Keys = {"type": "HFDataLoader", "path": "a.json"}


def mixture(*parts: Keys, **keys: Any) -> Keys:
    return {"type": "MultiSourceDataLoader", "sub_data_loader": list(parts), **keys}


def test_mixtures(folder: Path) -> None:
    handlers = {"handler": [{"type": "PackingHandler"}]}
    loader = mixture(MIND, {**TABLE, **handlers, "num_samples": 9}, nums_per_dataset=[3, 5])
    found = data_of(folder, loader)
    table = TableFiles(
        (folder / "a.json",), "json", {"train": (folder / "a.json",)}, handlers=(PackOptions(LENGTH + 1),)
    )
    path = "train_dataset.data_loader.sub_data_loader"
    parts = (
        MixturePart(MindRecordFiles((folder / "rows.mindrecord",)), name=f"{path}[0]"),
        MixturePart(table, num_samples=9, name=f"{path}[1]"),
    )
    assert found == DataOptions(
        Mixture(parts, (3, 5), shuffle=True),
        ("input_ids", "labels", "actual_seq_len"),
        "source",
        1,
        pad_token_id=0,
        documents=DocumentOptions(),
    )
    assert found.paths == (folder / "rows.mindrecord", folder / "a.json")


@pytest.mark.parametrize(
    ("keys", "counts"),
    [
        ({}, None),
        ({"nums_per_dataset": [0, 7]}, (0, 7)),
        ({"dataset_ratios": [0.25, 0.75], "samples_count": 10}, (3, 7)),
        ({"dataset_ratios": [0.1, 0.9], "samples_count": 30}, (3, 27)),
    ],
)
def test_numbers_of_samples(folder: Path, keys: Keys, counts: tuple[int, ...] | None) -> None:
    source = data_of(folder, mixture(MIND, TABLE, **keys)).source
    assert isinstance(source, Mixture)
    assert source.counts == counts


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=6).filter(any), st.integers(1, 10**6))
def test_shares_add_up(weights: list[int], total: int) -> None:
    ratios = [weight / sum(weights) for weight in weights]
    shares = _shares(ratios, total)
    assert sum(shares) == total
    assert all(abs(share - ratio * total) < 1.001 for share, ratio in zip(shares, ratios, strict=True))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(True, True), (None, True), ("infile", True), ("global", True), (False, False), ("files", False)],
)
def test_orders_of_a_mixture(folder: Path, asked: Any, expected: bool) -> None:
    source = data_of(folder, mixture(MIND, shuffle=asked)).source
    assert isinstance(source, Mixture)
    assert source.shuffle is expected


def test_keys_for_all_parts(folder: Path) -> None:
    parts: Sequence[Keys] = ({"type": "CommonDataLoader"}, {"type": "CommonDataLoader", "path": "b.jsonl"})
    common = {"path": "a.json", "handler": [TAKE]}
    source = data_of(folder, mixture(*parts, sub_data_loader_args=common)).source
    assert isinstance(source, Mixture)
    for part in source.parts:
        assert isinstance(part.source, TableFiles)
        assert (part.source.paths, part.source.handlers) == ((folder / "a.json",), (MethodOptions("take", {"n": 1}),))


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (mixture(), "sub_data_loader is not set"),
        (
            mixture({**MIND, "dataset_dir": "gone"}),
            "sub_data_loader[0].dataset_dir is 'gone': there is nothing at gone",
        ),
        (mixture({"type": "MindDataset"}), "sub_data_loader[0].dataset_dir is not set"),
        (mixture(TABLE, {**TABLE, "path": "gone"}), "sub_data_loader[1].path is 'gone'"),
        (mixture({**TABLE, "spilt": "x"}), "sub_data_loader[0].spilt is not a known key"),
        (mixture({**MIND, "spilt": "x"}), "sub_data_loader[0].spilt is not a known key"),
        (mixture({"type": "BlendedMegatronDatasetDataLoader"}), "cannot be mixed; these can: MindDataset"),
        (mixture(MIND, nums_per_dataset=[1, 2]), "nums_per_dataset has 2 numbers for 1 parts"),
        (mixture(MIND, nums_per_dataset=[0]), "nums_per_dataset asks for no samples at all"),
        (mixture(MIND, dataset_ratios=[0.5], samples_count=3), "dataset_ratios must add up to 1, not 0.5"),
        (mixture(MIND, dataset_ratios=[1.0]), "samples_count is not set"),
        (mixture(MIND, samples_count=3), "samples_count goes with dataset_ratios"),
        (mixture(MIND, nums_per_dataset=[-1]), "nums_per_dataset must be at least 0"),
        (mixture(MIND, {**TABLE, "create_compressed_eod_mask": True}), "documents end in different ways"),
    ],
)
def test_mixtures_that_cannot_be(folder: Path, loader: Keys, expected: str) -> None:
    found = error_of(folder, loader, eod_token_id=4)
    assert expected in found
    assert "--train_dataset.data_loader.sub" not in found


def test_what_has_no_effect_in_a_mixture(folder: Path) -> None:
    part = {**MIND, "shuffle": True, "split": "train"}
    ratios = {"dataset_ratios": [1.0], "samples_count": 5, "nums_per_dataset": [3]}
    notice = task_of(folder, mixture(part, path="x", shuffle_buffer_size=320, **ratios)).notices[-1]
    for line in (
        "sub_data_loader[0].shuffle: the mixture's own shuffle decides",
        "nums_per_dataset: dataset_ratios decides",
        "shuffle_buffer_size: the mixed datasets take turns in proportion",
    ):
        assert line in notice
    assert "path, train_dataset.data_loader.sub_data_loader[0].split: belongs to another data loader" in notice


def test_shifted_and_other_rows_do_not_mix(folder: Path) -> None:
    text = text_of(mixture(MIND, {**TABLE, "handler": [PACK]})) + "    input_sliced_sig: True\n"
    with pytest.raises(ConfigError, match="cannot be mixed with input_sliced_sig"):
        load(folder, text)


def test_a_plan_opens_nothing_while_a_tokenizer_or_a_part_is_missing(folder: Path) -> None:
    handler = [{**TEXT, "tokenizer": "somebody/model"}]
    for loader, missing in (
        ({"path": "a.json", "handler": handler}, "train_dataset.data_loader.handler[0].tokenizer"),
        (mixture(MIND, {"type": "HFDataLoader"}), "train_dataset.data_loader.sub_data_loader[1].path"),
    ):
        task = task_of(folder, loader, "--dry_run", "True")
        assert list(task.to_fill_in) == [missing]
        assert task.train is not None
        assert task.train.data.paths == ()
