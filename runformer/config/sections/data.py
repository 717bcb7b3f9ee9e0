"""The sections about datasets: ``train_dataset``, ``eval_dataset`` and the tasks around them."""
# ruff: noqa: RUF009 - the calls wrap dataclasses.field, which the rule would allow

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from runformer.config.plugin_sections import PluginSection
from runformer.config.schema import Key, group, no_effect, sets
from runformer.config.sections.foreign import PYNATIVE_DATASET
from runformer.config.sections.megatron import MegatronConfig
from runformer.config.sections.predict import Tokenizer
from runformer.config.sections.reasons import (
    ALWAYS,
    BORDERS,
    CURSOR,
    DEAD,
    FOLDER_CODE,
    LOADING,
    OFFLINE,
    OTHER_LOADER,
    PLUGIN,
    TURNS,
    VISION,
)

TABLES = ("HFDataLoader", "CommonDataLoader")
MIXTURE = "MultiSourceDataLoader"
MEGATRON = "BlendedMegatronDatasetDataLoader"

_PREPROCESS = "`python -m runformer preprocess` makes rows of such files, or HFDataLoader with data handlers reads them"
REFUSED_LOADERS: dict[str, str] = {
    "TFRecordDataset": "where MindSpore is installed mindspore.mindrecord.TFRecordToMR makes a MindRecord file of it",
    **dict.fromkeys(
        (
            "ADGenDataLoader",
            "CLUENERDataLoader",
            "SFTDataLoader",
            "SQuADDataLoader",
            "ToolAlpacaDataLoader",
            "TrainingDataLoader",
            "WMT16DataLoader",
        ),
        _PREPROCESS,
    ),
}
"""Loaders that are not read here, and what to do instead."""


@dataclass(frozen=True, slots=True)
class HandlerTokenizer(Tokenizer):
    """``tokenizer``: the tokenizer of a data handler; left out, the model's."""

    pretrained_model_dir: str | None = sets("train.data.handlers", "Folder of the tokenizer.")


@dataclass(frozen=True, slots=True)
class Encoder:
    """What data handlers that make tokens of text have in common."""

    type: str | None = sets("train.data.handlers", "Kind of data handler.")
    seq_length: int | None = sets(
        "train.data.handlers", "Positions that the model sees: rows have one token more. Longer ones are cut.", least=1
    )
    tokenizer: str | HandlerTokenizer | None = sets("train.data.handlers", "The tokenizer, or its folder.")
    tokenizer_name: str | None = sets("train.data.handlers", "Folder of the tokenizer.")
    padding: bool = sets("train.data.handlers", "Whether short rows are filled up.", True)
    is_dynamic: bool = sets("train.data.handlers", "The opposite of padding.", False)
    padding_side: str | None = sets(
        "train.data.handlers", "Side that short rows are filled on; right if left out.", choices=("left", "right")
    )
    output_columns: list[str] | None = no_effect(ALWAYS, "Columns that are made: input_ids, labels.")
    prompt_key: str | None = no_effect(DEAD, "Name of the prompt.")
    trust_remote_code: bool | None = no_effect(FOLDER_CODE, "Whether code of the tokenizer's folder may run.")
    auto_register: str | None = no_effect(PLUGIN, "File and class of a plug-in.")


@dataclass(frozen=True, slots=True)
class AlpacaHandler(Encoder):
    """``AlpacaInstructDataHandler``: instruction, input and output, in the words of the original."""


@dataclass(frozen=True, slots=True)
class MessagesHandler(Encoder):
    """``MessagesDataHandler``: conversations, by the tokenizer's chat template; what the assistant says is learnt."""

    column: str | None = sets("train.data.handlers", "Column of the messages; messages or conversations if left out.")


@dataclass(frozen=True, slots=True)
class TextHandler(Encoder):
    """``TextDataHandler``: plain text, with the end token behind it."""

    column: str | None = sets("train.data.handlers", "Column of the text; text if left out.")


@dataclass(frozen=True, slots=True)
class PackHandler:
    """``PackingHandler``: several documents in a row, each seen by itself."""

    type: str | None = sets("train.data.handlers", "Kind of data handler.")
    seq_length: int | None = sets(
        "train.data.handlers", "Positions that the model sees: rows have one token more.", least=1
    )
    pack_strategy: str | None = sets(
        "train.data.handlers",
        "pack keeps documents whole and leaves out longer ones, truncate joins and cuts them; packing if left out.",
        choices=("pack", "truncate"),
    )
    pad_token_id: int | None = sets("train.data.handlers", "Token that fills rows; the model's if left out.", least=0)
    ignore_token_id: int | None = no_effect(ALWAYS, "Label of what is not learnt: -100.", accepted=(-100,))
    tokenizer: Any = no_effect(ALWAYS, "Tokenizer; what is packed has tokens already.")
    output_columns: list[str] | None = no_effect(ALWAYS, "Columns that are made: input_ids, labels, actual_seq_len.")
    auto_register: str | None = no_effect(PLUGIN, "File and class of a plug-in.")


HANDLERS: Mapping[str, type] = {
    "AlpacaInstructDataHandler": AlpacaHandler,
    "MessagesDataHandler": MessagesHandler,
    "TextDataHandler": TextHandler,
    "PackingHandler": PackHandler,
}

METHODS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "class_encode_column": (("column",), ("include_nulls",)),
    "flatten": ((), ("max_depth",)),
    "flatten_indices": ((), ()),
    "remove_columns": (("column_names",), ()),
    "rename_column": (("original_column_name", "new_column_name"), ()),
    "rename_columns": (("column_mapping",), ()),
    "repeat": (("num_times",), ()),
    "select": (("indices",), ()),
    "select_columns": (("column_names",), ()),
    "shard": (("num_shards", "index"), ("contiguous",)),
    "shuffle": ((), ("seed",)),
    "skip": (("n",), ()),
    "sort": (("column_names",), ("reverse", "null_placement")),
    "take": (("n",), ()),
}
"""Methods of ``datasets.Dataset`` that give another table, with the arguments that each must and may have."""


@dataclass(frozen=True, slots=True)
class Handler:
    """An item of ``handler`` that is not built in: a method of ``datasets.Dataset``; its arguments are kept."""

    REST: ClassVar[str] = "arguments"

    type: str | None = sets("train.data.handlers", "Name of the method.")
    auto_register: str | None = no_effect(PLUGIN, "File and class of a plug-in.")
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SubLoader:
    """``sub_data_loader``: one of the loaders that are mixed."""

    REST: ClassVar[str] = "arguments"
    REST_TYPES: ClassVar[tuple[str, ...]] = TABLES

    type: str | None = sets(
        "train.data",
        "Kind of dataset: MindDataset reads MindRecord files; HFDataLoader and CommonDataLoader read what the datasets "
        "library opens; MultiSourceDataLoader mixes several.",
    )
    dataset_dir: str | list[str] | None = sets("train.data.source", "A MindRecord file, or a folder of them.")
    dataset_files: str | list[str] | None = sets("train.data.source", "The MindRecord files, one by one.")
    shuffle: bool | str | None = sets(
        "train.data.shuffle",
        "Whether rows come in a random order, new in each epoch. reference is the original's, number for number, as is "
        "True for MindDataset; hashed takes no memory, as does True for others. In a mixture global and infile mean "
        "True, files False.",
        choices=("reference", "hashed", "global", "infile", "files"),
    )
    num_samples: int | None = sets("train.data.num_samples", "How many rows of the dataset are used.", least=1)
    handler: list[Handler | PluginSection] | None = sets(
        "train.data.handlers",
        "What changes each record, or the table, in turn: the type and the keys of each. A type is built in, a "
        f"plug-in, or a method of datasets.Dataset ({', '.join(METHODS)}), whose arguments are its keys.",
        plugin="data_handler",
        variants=HANDLERS,
        otherwise=Handler,
    )
    columns: list[str] | None = no_effect(ALWAYS, "Columns to read; input_columns decides.")
    num_parallel_workers: int | None = no_effect(LOADING, "Number of reading threads.")
    shuffle_dataset: bool | None = no_effect(OTHER_LOADER, "Whether a dataset is shuffled.")
    config: MegatronConfig = group("How samples are drawn from Megatron datasets.", MegatronConfig)
    datasets_type: str | None = sets("train.data.source", "Kind of Megatron dataset.", choices=("GPTDataset",))
    sizes: list[int | None] | None = sets(
        "train.data.source.size",
        "Numbers of samples for training, validation and test that Megatron datasets give; null: all there are.",
        least=0,
        most=2**40,
    )
    load_func: str | None = sets(
        "train.data.source",
        "Function of the datasets library that opens the data; load_dataset if left out.",
        choices=("load_dataset", "load_from_disk"),
    )
    path: str | None = sets(
        "train.data.source",
        "A folder, a file, or a format (json, csv, parquet, text, arrow) whose files data_files names. Nothing is "
        "downloaded.",
        aliases=("dataset_path",),
    )
    data_files: str | list[str] | dict[str, Any] | None = sets(
        "train.data.source", "Files or patterns of files, or those of each split."
    )
    data_dir: str | None = sets("train.data.source", "Folder that data_files lie in.")
    name: str | None = sets("train.data.source", "Which of several configurations a folder of data has.")
    split: str | None = sets("train.data.source", "Split, or a part of one: train[:10%]; train if left out.")
    streaming: bool | None = sets(
        "train.data.source", "Whether rows are read from the files in turn, with nothing written to a cache."
    )
    size: int | None = sets(
        "train.data.source", "How many rows a stream has, where that cannot be seen beforehand.", least=1
    )
    packing: str | None = sets(
        "train.data.documents",
        "How short records are packed into rows: strategy of PackingHandler; without one rows are packed already.",
        choices=("pack", "truncate"),
    )
    adaptor_config: Any = no_effect(BORDERS, "Options of packed rows.")
    create_attention_mask: bool | None = sets(
        "train.data.documents", "Whether documents in a row are seen apart; actual_seq_len says where they end."
    )
    create_compressed_eod_mask: bool | None = sets(
        "train.data.documents", "The same; where rows are not packed documents end behind eod_token_id."
    )
    compressed_eod_mask_length: int | None = no_effect(BORDERS, "Length of the compressed mask.")
    use_broadcast_data: bool | None = no_effect(LOADING, "Whether one process reads for the others.")
    column_names: list[str] | None = sets(
        "train.data.columns", "Columns to read: tokens, then labels; input_columns wins. input_ids, labels if left out."
    )
    trust_remote_code: bool | None = no_effect(OFFLINE, "Whether code of a dataset may run.")
    revision: str | None = no_effect(OFFLINE, "Version of a dataset on the hub.")
    token: Any = no_effect(OFFLINE, "Password of the hub.", aliases=("use_auth_token",))
    download_config: Any = no_effect(OFFLINE, "How files are downloaded.")
    storage_options: Any = no_effect(OFFLINE, "How remote files are reached.")
    dataset_state_dir: str | None = no_effect(CURSOR, "Where the state of a stream is saved.")
    save_step: int | None = no_effect(CURSOR, "How often the state of a stream is saved.")
    resume_step: int | None = no_effect(CURSOR, "Step that a stream is resumed at.")
    origin_columns: Any = no_effect(OTHER_LOADER, "Columns of the raw records.")
    phase: str | None = sets("train.data.source.part", "Which part of Megatron datasets is read: train, valid or test.")
    version: int | None = no_effect(OTHER_LOADER, "Version of the prompt format.")
    stage: str | None = no_effect(OTHER_LOADER, "Which part of the dataset is read.")
    annotation_file: str | None = no_effect(OTHER_LOADER, "File of annotations.")
    fine_label: Any = no_effect(OTHER_LOADER, "Whether CIFAR-100 has its fine labels.")
    hypothesis_template: Any = no_effect(OTHER_LOADER, "Caption that a class is put into.")
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataLoader(SubLoader):
    """``data_loader``: which files rows come from."""

    sub_data_loader: list[SubLoader] | None = sets("train.data.source", "Loaders that are mixed.")
    sub_data_loader_args: SubLoader | None = sets("train.data.source", "Keys that all of them have; they win.")
    dataset_ratios: list[float] | None = sets(
        "train.data.source", "Share of each mixed dataset in samples_count; together 1.", least=0, most=1
    )
    samples_count: int | None = sets("train.data.source", "Number of samples of the mixture in an epoch.", least=1)
    nums_per_dataset: list[int] | None = sets(
        "train.data.source", "Number of samples of each mixed dataset in an epoch; all of each if left out.", least=0
    )
    shuffle_buffer_size: int | None = no_effect(TURNS, "Over how many samples the mixed datasets are shuffled.")
    data_source_type: str | None = no_effect(TURNS, "How the mixture is read.")
    load_indices_npz_path: str | None = no_effect(TURNS, "File of an order that was saved.")
    save_indices_npz_path: str | None = no_effect(TURNS, "Where the order is saved.")


_EVERY_LOADER = ("type", "shuffle", "num_samples")
_TABLE_KEYS = (
    *_EVERY_LOADER,
    "handler",
    *("load_func", "path", "data_files", "data_dir", "name", "split", "streaming", "size"),
    *("packing", "create_attention_mask", "create_compressed_eod_mask", "column_names"),
)
LOADER_KEYS: Mapping[str, tuple[str, ...]] = {
    "MindDataset": (*_EVERY_LOADER, "handler", "dataset_dir", "dataset_files"),
    **dict.fromkeys(TABLES, _TABLE_KEYS),
    MEGATRON: (*_EVERY_LOADER, "config", "datasets_type", "sizes", "phase"),
    MIXTURE: (
        *_EVERY_LOADER,
        *("sub_data_loader", "sub_data_loader_args", "dataset_ratios", "samples_count", "nums_per_dataset"),
    ),
}
"""The keys with an effect that each kind of loader reads."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """``train_dataset``, ``eval_dataset`` and ``dataset_config``: columns and batches of one dataset."""

    OTHERS: ClassVar[Mapping[str, Key]] = PYNATIVE_DATASET

    data_loader: DataLoader = group("Which files rows come from.", DataLoader)
    input_columns: list[str] | None = sets("train.data.columns", "Columns to read: tokens, then labels.")
    drop_remainder: bool | None = sets(
        "train.data.drop_remainder", "Whether the last, short batch is dropped; if left out, only in training."
    )
    seed: int | None = sets("train.data.seed", "Seed of the order of rows.", least=0)
    batch_size: int | None = sets(
        "evaluation.batch_size", "Rows in a batch of eval_dataset; in training runner_config decides.", least=1
    )
    num_parallel_workers: int | None = no_effect(LOADING, "Number of reading processes.")
    python_multiprocessing: bool | None = no_effect(LOADING, "Whether reading runs in processes, not threads.")
    numa_enable: bool | None = no_effect(LOADING, "Whether reading is bound to one memory node.")
    prefetch_size: int | None = no_effect(LOADING, "Number of batches read ahead.")
    autotune_per_step: int | None = no_effect(LOADING, "How often reading is tuned.")
    profile: bool | None = no_effect(LOADING, "Whether reading is profiled.")
    repeat: int = sets("train.data.repeat", "How often an epoch passes over the dataset.", 1, least=1, most=1_000_000)
    construct_args_key: list[str] | None = no_effect(ALWAYS, "Names of the model's inputs, in order.")
    output_columns: list[str] | None = no_effect(ALWAYS, "Names of the columns after reading.")
    column_order: list[str] | None = no_effect(ALWAYS, "Order of the columns.")
    dynamic_batch: bool = sets(
        "train.data.padding", "Whether rows of any length are padded to the longest of their batch.", False
    )
    divisor: int = sets(
        "train.data.padding.divisor", "Padded rows have a multiple of so many tokens, plus remainder.", 1, least=1
    )
    remainder: int = sets("train.data.padding.remainder", "What is added to a multiple of divisor.", 0, least=0)
    pad_token_id: int | None = no_effect("model.model_config.pad_token_id decides", "Token that fills short rows.")
    eod_reset: bool = sets(
        "train.data.documents", "Whether attention and positions start anew behind each eod_token_id.", False
    )
    eod_token_id: int | None = sets("train.data.documents.eod", "Token that ends a document.", least=0)
    auto_tune: bool | None = no_effect(LOADING, "Whether reading is tuned.")
    filepath_prefix: str | None = no_effect(LOADING, "Where the tuning is kept.")
    tokenizer: Any = no_effect(OTHER_LOADER, "Tokenizer for raw text.")
    max_source_length: int | None = no_effect(OTHER_LOADER, "Longest prompt of a raw record.")
    max_target_length: int | None = no_effect(OTHER_LOADER, "Longest answer of a raw record.")
    ignore_pad_token_for_loss: bool | None = no_effect(OTHER_LOADER, "Whether padding is left out of the loss.")
    transforms: Any = no_effect(VISION, "Steps that prepare images.")
    text_transforms: Any = no_effect(VISION, "Steps that prepare captions.")
    modal_to_text_transform: Any = no_effect(VISION, "Steps that turn images into tokens.")


@dataclass(frozen=True, slots=True)
class DatasetTask:
    """``train_dataset_task``: MindFormers' class around a dataset, with the dataset again."""

    type: str | None = no_effect(ALWAYS, "Kind of task around the dataset.", accepted=("CausalLanguageModelDataset",))
    dataset_config: Dataset = group("The same dataset once more, usually as a YAML alias.", Dataset)


@dataclass(frozen=True, slots=True)
class Metric:
    """``metric``: what evaluation measures."""

    type: str | None = sets("evaluation", "Kind of metric; PerplexityMetric.")
    eval_type: str | None = no_effect(VISION, "Kind of a classifier's metric.")
