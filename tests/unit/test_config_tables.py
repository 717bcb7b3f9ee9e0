"""Loaders of tables and mixtures in a task file: what they mean, and what is said of what they cannot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from config_tasks import MODEL, load
from table_tasks import FILES, LENGTH, Keys, data_of, error_of, source_of, task_of, text_of

from runformer.config.data_sources import (
    EncodeOptions,
    PackOptions,
    TableFiles,
)
from runformer.config.task import (
    DataOptions,
    DocumentOptions,
    TokenizerOptions,
)
from runformer.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_files_of_a_format(folder: Path) -> None:
    found = data_of(folder, {"path": "json", "data_files": "a.json"})
    path = folder / "a.json"
    assert found == DataOptions(
        TableFiles((path,), "json", {"train": (path,)}), ("input_ids", "labels"), None, 1, pad_token_id=0
    )
    assert found.paths == (path,)


@pytest.mark.parametrize(
    ("keys", "names", "format", "splits"),
    [
        ({"data_files": ["a.json", "b.jsonl"]}, ["a.json", "b.jsonl"], "json", {"train": 2}),
        (
            {"path": "parquet", "data_files": "data/*.parquet"},
            ["data/x.parquet", "data/y.parquet"],
            "parquet",
            {"train": 2},
        ),
        ({"path": "data", "data_files": "x.parquet"}, ["data/x.parquet"], "parquet", {"train": 1}),
        ({"path": "parquet", "data_dir": "data", "data_files": "y*"}, ["data/y.parquet"], "parquet", {"train": 1}),
        (
            {"data_files": {"train": "a.json", "dev": ["b.jsonl"]}},
            ["a.json", "b.jsonl"],
            "json",
            {"train": 1, "dev": 1},
        ),
        ({"path": "b.jsonl"}, ["b.jsonl"], "json", {"train": 1}),
        ({"path": "c.csv", "load_func": "load_dataset"}, ["c.csv"], "csv", {"train": 1}),
        ({"path": "data"}, ["data"], None, {}),
        ({"path": "text", "data_files": "a.json"}, ["a.json"], "text", {"train": 1}),
    ],
)
def test_what_path_and_data_files_name(
    folder: Path, keys: Keys, names: list[str], format: str | None, splits: dict[str, int]
) -> None:
    found = source_of(folder, keys)
    assert found.paths == tuple(folder / name for name in names)
    assert (found.format, {split: len(files) for split, files in found.files.items()}) == (format, splits)
    assert not found.saved


@pytest.mark.parametrize("key", ["path", "dataset_path"])
def test_tables_that_were_saved(folder: Path, key: str) -> None:
    keys = {"load_func": "load_from_disk", key: "saved", "split": "dev", "keep_in_memory": True}
    expected = TableFiles((folder / "saved",), saved=True, split="dev", arguments={"keep_in_memory": True})
    assert source_of(folder, keys) == expected


def test_streams_splits_and_arguments(folder: Path) -> None:
    keys = {"path": "c.csv", "split": "train[:10%]", "num_proc": 2, "sep": ";", "name": "it", "cache_dir": "here"}
    found = source_of(folder, keys)
    assert found.split == "train[:10%]"
    assert found.arguments == {"num_proc": 2, "sep": ";", "name": "it", "cache_dir": "here"}
    stream = source_of(folder, {"path": "c.csv", "streaming": True, "size": 7})
    assert (stream.streaming, stream.rows) == (True, 7)


@pytest.mark.parametrize(
    ("asked", "expected"), [(True, "hashed"), ("reference", "reference"), (False, None), (None, None)]
)
def test_shuffle(folder: Path, asked: Any, expected: str | None) -> None:
    assert data_of(folder, {"path": "a.json", "shuffle": asked}).shuffle == expected


@pytest.mark.parametrize(
    ("loader", "dataset", "documents"),
    [
        ({}, {}, None),
        ({"create_attention_mask": False, "create_compressed_eod_mask": False}, {}, None),
        ({"create_attention_mask": True}, {}, DocumentOptions()),
        (
            {"type": "CommonDataLoader", "packing": "pack", "adaptor_config": {"compress_mask": True}},
            {},
            DocumentOptions(),
        ),
        ({"create_compressed_eod_mask": True}, {"eod_token_id": 5}, DocumentOptions(eod=5)),
        ({"create_compressed_eod_mask": True, "create_attention_mask": True}, {}, DocumentOptions()),
        ({"handler": [{"type": "PackingHandler"}]}, {}, DocumentOptions()),
    ],
)
def test_who_says_where_documents_end(folder: Path, loader: Keys, dataset: Keys, documents: object) -> None:
    assert data_of(folder, {"path": "a.json", **loader}, **dataset).documents == documents


def test_the_end_of_documents_may_be_the_models(folder: Path) -> None:
    keys = {"path": "a.json", "create_compressed_eod_mask": True}
    train = load(folder, text_of(keys) + "    eos_token_id: 9\n").train
    assert train is not None
    assert train.data.documents == DocumentOptions(eod=9)
    with pytest.raises(ConfigError, match=r"needs the token that ends a document: set train_dataset\.eod_token_id"):
        load(folder, text_of(keys) + "    eos_token_id: [8, 9]\n")


@pytest.mark.parametrize(
    ("loader", "dataset", "columns"),
    [
        ({"column_names": ["a", "b"]}, {}, ("a", "b")),
        ({"column_names": ["a", "b"]}, {"input_columns": ["ids"]}, ("ids",)),
        (
            {},
            {"input_columns": ["input_ids", "labels", "loss_mask", "position_ids", "attention_mask"]},
            ("input_ids", "labels"),
        ),
        ({"column_names": ["actual_seq_len"]}, {}, ("input_ids", "labels", "actual_seq_len")),
    ],
)
def test_columns(folder: Path, loader: Keys, dataset: Keys, columns: tuple[str, ...]) -> None:
    assert data_of(folder, {"path": "a.json", **loader}, **dataset).columns == columns


def test_rows_that_are_made_here_are_not_shifted(folder: Path) -> None:
    """Whatever the model is told of rows that others have made."""

    def shifted(*handler: Keys) -> bool:
        loader = {"path": "a.json", "handler": list(handler)}
        train = load(folder, text_of(loader) + "    input_sliced_sig: True\n").train
        assert train is not None
        return train.data.already_shifted

    assert shifted()
    assert shifted({"type": "take", "n": 1})
    assert not shifted({"type": "TextDataHandler"})
    assert not shifted({"type": "PackingHandler"})


def test_packing_of_the_loader_is_the_handlers(folder: Path) -> None:
    handler = [{"type": "AlpacaInstructDataHandler"}, {"type": "PackingHandler"}]
    found = source_of(folder, {"type": "CommonDataLoader", "path": "a.json", "packing": "truncate", "handler": handler})
    assert found.handlers == (encoder("alpaca", padding=None), PackOptions(LENGTH + 1, "truncate"))


def encoder(form: Any, **changes: Any) -> EncodeOptions:
    return EncodeOptions(form, TokenizerOptions(), LENGTH + 1, **changes)


TAKE = {"type": "take", "n": 1}
TEXT, PACK = {"type": "TextDataHandler"}, {"type": "PackingHandler"}


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        ({}, "data_loader.path is not set: a folder, a file, or a format beside data_files"),
        ({"path": "json"}, "data_loader.data_files is not set: the files that are json"),
        ({"path": "jsno", "data_files": "a.json"}, "data_loader.path is 'jsno': did you mean 'json'?"),
        ({"path": "llm-wizard/alpaca-gpt4-data-zh"}, "; nothing is downloaded: download it, and name its folder"),
        ({"path": "path/to/alpaca"}, "; replace this placeholder"),
        ({"path": "json", "data_files": "path/to/x.json"}, "data_files is"),
        ({"path": "json", "data_files": "https://host/x.json"}, "'https://host/x.json': nothing is downloaded"),
        ({"path": "json", "data_files": "*.jsn"}, "data_loader.data_files is '*.jsn': no file has such a name"),
        ({"path": "json", "data_files": {"train": [3]}}, "data_files must name files, not hold 3"),
        ({"path": "tok/vocab.txt", "load_func": "load_from_disk"}, "'tok/vocab.txt', which is a file: load_from_disk"),
        ({"path": "saved", "load_func": "load_form_disk"}, "did you mean 'load_from_disk'?"),
        (
            {"path": "saved", "load_func": "load_from_disk", "data_files": "a.json"},
            "data_files belongs to load_dataset",
        ),
        ({"load_func": "load_from_disk"}, "path is not set: the folder that save_to_disk has made"),
        ({"data_files": "saved/state.jsn"}, "data_files is"),
        (
            {"path": "a.json", "splitt": "train"},
            "data_loader.splitt is not a known key, and load_dataset of the datasets "
            "library does not take it: did you mean 'split'?",
        ),
        ({"path": "a.json", "fild": "x"}, "did you mean 'field'?"),
        ({"path": "c.csv", "field": "x"}, "data_loader.field is not a known key"),
        ({"path": "saved", "load_func": "load_from_disk", "keep_in_memry": True}, "did you mean 'keep_in_memory'?"),
        ({"path": "a.json", "features": {}}, "data_loader.features cannot be written in a task file"),
        ({"path": "a.json", "shuffle": "global"}, "shuffle is 'global', which only a mixture knows"),
        ({"path": "a.json", "streaming": True, "shuffle": True}, "a stream comes in the order of its files"),
        ({"path": "a.json", "streaming": True, "split": "train[:5]"}, "a stream has no parts"),
        ({"path": "saved", "load_func": "load_from_disk", "streaming": True}, "is mapped, not read"),
        ({"path": "a.json", "streaming": True, "handler": [TEXT, PACK]}, "must know how long all records are"),
        (
            {"path": "a.json", "streaming": True, "handler": [{"type": "shuffle"}]},
            "handler[0].type is 'shuffle', but a",
        ),
        ({"path": "a.json", "handler": [{"type": "tak", "n": 1}]}, "handler[0].type is 'tak'; did you mean 'take'?"),
        ({"path": "a.json", "handler": [{"type": "PackHandler"}]}, "did you mean 'PackingHandler'?"),
        ({"path": "a.json", "handler": [{"type": "filter"}]}, "is 'filter', which is given code: write a data handler"),
        ({"path": "a.json", "handler": [{"type": "train_test_split"}]}, "two tables of one: set split to a part"),
        ({"path": "a.json", "handler": [{"type": "CodeAlpacaInstructDataHandler"}]}, "use AlpacaInstructDataHandler"),
        ({"path": "a.json", "handler": [{"type": "take"}]}, "handler[0] lacks 'n', which take needs"),
        ({"path": "a.json", "handler": [{"type": "take", "m": 1}]}, "handler[0].m is not a key of take, which takes n"),
        ({"path": "a.json", "handler": [{"type": "flatten_indices", "x": 1}]}, "flatten_indices, which takes none"),
        ({"path": "a.json", "handler": [{"type": "PackingHandler", "seq_lenght": 1}]}, "did you mean 'seq_length'?"),
        (
            {"path": "a.json", "handler": [{"type": "PackingHandler", "seq_length": 4}]},
            "handler[0].seq_length is 4, but model.model_config.seq_length is 48",
        ),
        (
            {"path": "a.json", "handler": [TEXT, TEXT]},
            "handler[1].type makes tokens of text, and stands behind a handler",
        ),
        ({"path": "a.json", "handler": [PACK, PACK]}, "handler[1].type packs rows that are packed already"),
        (
            {"path": "a.json", "handler": [TEXT, {"type": "sort", "column_names": "x"}]},
            "'sort', which must stand before",
        ),
        ({"path": "a.json", "handler": [{**TEXT, "padding": False}]}, "handler[0] makes rows of different lengths"),
        ({"path": "a.json", "handler": [{**TEXT, "is_dynamic": True}, TAKE]}, "handler[0] makes rows of different"),
        (
            {"path": "a.json", "handler": [{**TEXT, "tokenizer": "somebody/model"}]},
            "handler[0].tokenizer is 'somebody/model'",
        ),
        (
            {"path": "a.json", "handler": [{**TEXT, "tokenizer": {"vocab_file": "gone"}}]},
            "tokenizer.vocab_file is 'gone'",
        ),
    ],
)
def test_what_is_wrong(folder: Path, loader: Keys, expected: str) -> None:
    found = error_of(folder, loader)
    assert expected in found
    assert "--train_dataset.data_loader.handler[" not in found


def test_an_ending_that_says_nothing(folder: Path) -> None:
    (folder / "x.data").touch()
    assert "leads to 'x.data', whose ending says no format" in error_of(folder, {"data_files": "x.data"})


def test_a_plan_notes_what_is_missing(folder: Path) -> None:
    task = task_of(folder, {"path": "llm-wizard/alpaca-gpt4-data-zh"}, "--dry_run", "True")
    assert list(task.to_fill_in) == ["train_dataset.data_loader.path"]
    assert task.train is not None
    assert task.train.data.paths == ()


def test_a_table_to_evaluate_on(folder: Path) -> None:
    loader = "{type: HFDataLoader, path: b.jsonl, split: dev, handler: [{type: PackingHandler}]}"
    text = f"run_mode: eval\nload_checkpoint: .\neval_dataset: {{batch_size: 2, data_loader: {loader}}}\n{MODEL}"
    evaluation = load(folder, text).evaluation
    assert evaluation is not None
    assert evaluation.data.source == TableFiles(
        (folder / "b.jsonl",),
        "json",
        {"train": (folder / "b.jsonl",)},
        split="dev",
        handlers=(PackOptions(LENGTH + 1),),
    )
    assert (evaluation.data.section, evaluation.data.drop_remainder) == ("eval_dataset", False)


def test_the_library_is_not_imported_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it fails
    assert source_of(folder, {"path": "a.json", "handler": [TAKE]}).format == "json"
    assert source_of(folder, {"path": "a.json", "fild": 1}).arguments == {
        "fild": 1
    }  # opening the data says what is missing


@pytest.mark.parametrize(
    ("loader", "idle"),
    [
        (
            {"dataset_dir": "rows.mindrecord", "path": "x", "split": "train", "create_attention_mask": True},
            "train_dataset.data_loader.{path, split, create_attention_mask}",
        ),
        (
            {"dataset_dir": "rows.mindrecord", "type": "MindDataset", "dataset_ratios": [1.0]},
            "train_dataset.data_loader.dataset_ratios",
        ),
        (
            {"type": "HFDataLoader", "path": "a.json", "dataset_dir": "rows.mindrecord"},
            "train_dataset.data_loader.dataset_dir",
        ),
    ],
)
def test_keys_of_other_loaders_are_noted(folder: Path, loader: Keys, idle: str) -> None:
    task = task_of(folder, {"type": None, **loader})
    assert f"{idle}: belongs to another data loader" in task.notices[-1]


def test_keys_that_are_off_are_not_noted(folder: Path) -> None:
    task = task_of(folder, {"path": "a.json", "dataset_dir": "", "nums_per_dataset": None})
    assert not any("another data loader" in notice for notice in task.notices)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("TFRecordDataset", "mindspore.mindrecord.TFRecordToMR"),
        ("ADGenDataLoader", "python -m runformer preprocess"),
        ("SQuADDataLoader", "HFDataLoader with data handlers"),
        ("HFDataloader", "did you mean 'HFDataLoader'?"),
    ],
)
def test_loaders_that_are_refused_say_what_to_do(folder: Path, kind: str, expected: str) -> None:
    assert expected in error_of(folder, {"type": kind, "path": "a.json"})


def test_tfrecord_files_are_refused(folder: Path) -> None:
    (folder / "x.tfrecord").touch()
    found = error_of(folder, {"type": "MindDataset", "dataset_files": ["x.tfrecord"]})
    assert "dataset_files is 'x.tfrecord', a TFRecord file: where MindSpore is installed" in found
