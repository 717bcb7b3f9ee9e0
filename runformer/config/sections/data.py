"""The sections about datasets: ``train_dataset``, ``eval_dataset`` and the tasks around them."""
# ruff: noqa: RUF009 - the calls wrap dataclasses.field, which the rule would allow

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from runformer.config.plugin_sections import PluginSection
from runformer.config.schema import Key, group, no_effect, sets
from runformer.config.sections.foreign import PYNATIVE_DATASET
from runformer.config.sections.megatron import MegatronConfig
from runformer.config.sections.reasons import ALWAYS, LOADING, OTHER_LOADER, PLUGIN, VISION

# Loaders of text that the original has and that are not built yet; those of images and labels are not listed.
LOADERS = (
    "HFDataLoader",
    "CommonDataLoader",
    "MultiSourceDataLoader",
    "TFRecordDataset",
    "ADGenDataLoader",
)


@dataclass(frozen=True, slots=True)
class Handler:
    """One item of ``handler`` that is no plug-in, as other loaders have them."""

    type: str | None = sets("train.data.handlers", "Kind of data handler.")
    auto_register: str | None = no_effect(PLUGIN, "File and class of a plug-in.")


@dataclass(frozen=True, slots=True)
class DataLoader:
    """``data_loader``: which files rows come from."""

    type: str | None = sets("train.data", "Kind of dataset; MindDataset reads MindRecord files.")
    dataset_dir: str | list[str] | None = sets("train.data.source", "A MindRecord file, or a folder of them.")
    dataset_files: str | list[str] | None = sets("train.data.source", "The MindRecord files, one by one.")
    shuffle: bool | str | None = sets(
        "train.data.shuffle",
        "Whether rows come in a random order, new in each epoch. True or reference: the original's, number for number; "
        "hashed: one that takes no memory.",
        choices=("reference", "hashed"),
    )
    num_samples: int | None = sets("train.data.num_samples", "How many rows of the dataset are used.", least=1)
    handler: list[Handler | PluginSection] | None = sets(
        "train.data.handlers",
        "Plug-ins that change each record in turn: the type and the keys of each.",
        plugin="data_handler",
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
    load_func: str | None = no_effect(OTHER_LOADER, "Function of the datasets library that opens the data.")
    path: str | None = no_effect(OTHER_LOADER, "Path or name of a Hugging Face dataset.")
    data_files: Any = no_effect(OTHER_LOADER, "Files of a Hugging Face dataset.")
    split: str | None = no_effect(OTHER_LOADER, "Split of a Hugging Face dataset.")
    streaming: bool | None = no_effect(OTHER_LOADER, "Whether a Hugging Face dataset is streamed.")
    packing: str | None = no_effect(OTHER_LOADER, "How short records are packed into rows.")
    adaptor_config: Any = no_effect(OTHER_LOADER, "Options of packed rows.")
    create_attention_mask: bool | None = no_effect(OTHER_LOADER, "Whether a mask column is made.")
    create_compressed_eod_mask: bool | None = no_effect(OTHER_LOADER, "Whether a compressed mask column is made.")
    compressed_eod_mask_length: int | None = no_effect(OTHER_LOADER, "Length of the compressed mask.")
    use_broadcast_data: bool | None = no_effect(OTHER_LOADER, "Whether one process reads for the others.")
    column_names: list[str] | None = no_effect(OTHER_LOADER, "Names of the columns.")
    origin_columns: Any = no_effect(OTHER_LOADER, "Columns of the raw records.")
    phase: str | None = sets("train.data.source.part", "Which part of Megatron datasets is read: train, valid or test.")
    version: int | None = no_effect(OTHER_LOADER, "Version of the prompt format.")
    stage: str | None = no_effect(OTHER_LOADER, "Which part of the dataset is read.")
    annotation_file: str | None = no_effect(OTHER_LOADER, "File of annotations.")
    fine_label: Any = no_effect(OTHER_LOADER, "Whether CIFAR-100 has its fine labels.")
    hypothesis_template: Any = no_effect(OTHER_LOADER, "Caption that a class is put into.")
    sub_data_loader: Any = no_effect(OTHER_LOADER, "Loaders that are mixed.")
    sub_data_loader_args: Any = no_effect(OTHER_LOADER, "Settings of the mixed loaders.")
    dataset_ratios: Any = no_effect(OTHER_LOADER, "Shares of the mixed datasets.")
    samples_count: int | None = no_effect(OTHER_LOADER, "Number of samples of the mixture.")
    nums_per_dataset: Any = no_effect(OTHER_LOADER, "Number of samples of each mixed dataset.")


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
