"""Loaders of tables and mixtures in a task file: what they mean, and what is said of what they cannot."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_tasks import MODEL, load
from hypothesis import given, settings
from hypothesis import strategies as st

from runformer import plugins
from runformer.config.data_sources import (
    EncodeOptions,
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
    PluginOptions,
    Task,
    TokenizerOptions,
)
from runformer.errors import ConfigError

LENGTH = 48  # of the model
Keys = dict[str, Any]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.jsonl", "c.csv", "data/x.parquet", "data/y.parquet", "saved/state.json", "tok/vocab.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def text_of(loader: Keys, **dataset: Any) -> str:
    keys = {"data_loader": {"type": "HFDataLoader", **loader}, **dataset}
    written = yaml.safe_dump(keys, default_flow_style=True, width=10_000, sort_keys=False)
    return f"run_mode: train\ntrain_dataset: {written}\n{MODEL}"


def task_of(folder: Path, loader: Keys, *arguments: str, **dataset: Any) -> Task:
    return load(folder, text_of(loader, **dataset), *arguments)


def data_of(folder: Path, loader: Keys, **dataset: Any) -> DataOptions:
    train = task_of(folder, loader, **dataset).train
    assert train is not None
    return train.data


def source_of(folder: Path, loader: Keys) -> TableFiles:
    source = data_of(folder, loader).source
    assert isinstance(source, TableFiles)
    return source


def error_of(folder: Path, loader: Keys, **dataset: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        task_of(folder, loader, **dataset)
    return str(caught.value)


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


def _keeping(keep: int) -> Any:
    return lambda row: {name: ids[:keep] for name, ids in row.items()}


def encoder(form: Any, **changes: Any) -> EncodeOptions:
    return EncodeOptions(form, TokenizerOptions(), LENGTH + 1, **changes)


def test_handlers(folder: Path, no_plugins: object) -> None:  # noqa: ARG001 - others' plug-ins are out of the way
    plugins.data_handler("Mine")(_keeping)
    handler = [
        {"type": "take", "n": 8000},
        {"type": "rename_column", "original_column_name": "q", "new_column_name": "instruction"},
        {"type": "Mine", "keep": 3},
        {
            "type": "AlpacaInstructDataHandler",
            "seq_length": LENGTH,
            "padding": False,
            "tokenizer": {"trust_remote_code": True, "padding_side": "right"},
        },
        {"type": "PackingHandler", "seq_length": LENGTH, "pack_strategy": "pack"},
        {"type": "shuffle"},
    ]
    found = data_of(folder, {"path": "a.json", "handler": handler})
    assert isinstance(found.source, TableFiles)
    assert found.source.handlers == (
        MethodOptions("take", {"n": 8000}),
        MethodOptions("rename_column", {"original_column_name": "q", "new_column_name": "instruction"}),
        PluginOptions("Mine", {"keep": 3}),
        encoder("alpaca", padding=None),
        PackOptions(LENGTH + 1),
        MethodOptions("shuffle", {}),
    )
    assert (found.handlers, found.documents) == ((), DocumentOptions())
    assert found.columns == ("input_ids", "labels", "actual_seq_len")


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"type": "AlpacaInstructDataHandler"}, encoder("alpaca")),
        ({"type": "MessagesDataHandler", "column": "talk"}, encoder("messages", column="talk")),
        ({"type": "TextDataHandler", "padding_side": "left"}, encoder("text", padding="left")),
        ({"type": "TextDataHandler", "tokenizer": {"padding_side": "left"}}, encoder("text", padding="left")),
        ({"type": "PackingHandler", "pack_strategy": "truncate"}, PackOptions(LENGTH + 1, "truncate")),
        ({"type": "PackingHandler", "pad_token_id": 3}, PackOptions(LENGTH + 1, "pack", 3)),
    ],
)
def test_each_built_in_handler(folder: Path, item: Keys, expected: object) -> None:
    assert source_of(folder, {"path": "a.json", "handler": [item]}).handlers == (expected,)


@pytest.mark.parametrize(
    "keys",
    [
        {"tokenizer": "tok"},
        {"tokenizer_name": "tok"},
        {"tokenizer": {"pretrained_model_dir": "tok"}},
    ],
)
def test_the_tokenizers_folder(folder: Path, keys: Keys) -> None:
    """A folder that a handler names wins over the files of processor.tokenizer."""
    handler = [{"type": "TextDataHandler", **keys}]
    text = text_of({"path": "a.json", "handler": handler}) + "processor: {tokenizer: {vocab_file: tok/vocab.txt}}\n"
    train = load(folder, text).train
    assert train is not None
    assert isinstance(train.data.source, TableFiles)
    assert train.data.source.handlers == (EncodeOptions("text", TokenizerOptions(folder / "tok"), LENGTH + 1),)


def test_the_tokenizer_of_the_task_with_what_a_handler_says_besides(folder: Path) -> None:
    def tokenizer(own: Keys) -> TokenizerOptions:
        handler = [{"type": "TextDataHandler", "tokenizer": own}]
        below = "processor: {tokenizer: {type: Qwen2Tokenizer, vocab_file: tok/vocab.txt, pad_token: '<p>'}}\n"
        train = load(folder, text_of({"path": "a.json", "handler": handler}) + below).train
        assert train is not None
        assert isinstance(train.data.source, TableFiles)
        (found,) = train.data.source.handlers
        assert isinstance(found, EncodeOptions)
        return found.tokenizer

    vocabulary = folder / "tok" / "vocab.txt"
    tokens = {"eos_token": "<e>", "pad_token": "<p>"}
    assert tokenizer({"eos_token": "<e>"}) == TokenizerOptions(
        kind="Qwen2Tokenizer", vocab_file=vocabulary, special_tokens=tokens
    )
    own = {"type": "LlamaTokenizer", "vocab_file": "a.json"}
    assert tokenizer(own) == TokenizerOptions(kind="LlamaTokenizer", vocab_file=folder / "a.json")


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
