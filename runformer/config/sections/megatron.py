"""``data_loader.config`` of BlendedMegatronDatasetDataLoader."""
# ruff: noqa: RUF009 - the calls wrap dataclasses.field, which the rule would allow

from __future__ import annotations

from dataclasses import dataclass

from runformer.config.schema import no_effect, refused, sets
from runformer.config.sections.reasons import ALWAYS, LOADING

_SEEDS = 2**32  # of numpy's RandomState


@dataclass(frozen=True, slots=True)
class MegatronConfig:
    """``config``: how samples are drawn from Megatron-LM's indexed datasets."""

    data_path: str | list[str] | None = sets(
        "train.data.source.prefixes",
        "The datasets: paths without .bin and .idx, each behind its weight, or all without weights.",
    )
    train_data_path: str | list[str] | None = sets(
        "train.data.source.prefixes", "In place of data_path and split: the datasets that are trained on, whole."
    )
    valid_data_path: str | list[str] | None = sets(
        "train.data.source.prefixes", "In place of data_path and split: the datasets for evaluation, whole."
    )
    test_data_path: str | list[str] | None = sets(
        "train.data.source.prefixes", "In place of data_path and split: the datasets for a test, whole."
    )
    split: str | None = sets(
        "train.data.source.split", "Shares of the documents for training, validation and test, such as '969, 30, 1'."
    )
    seq_length: int | None = sets(
        "train.data.source.sequence_length",
        "Tokens of a sample; if left out, model.model_config.seq_length.",
        least=1,
        most=2**30,
    )
    seed: int = sets(
        "train.data.source.seed", "Seed of the order of documents and samples.", 1234, least=0, most=_SEEDS - 1
    )
    eod: int = sets("train.data.documents.eod", "Token that ends a document; -1: there is none.", -1, least=-1)
    pad: int = sets(
        "train.data.source.pad", "Token that is padding: it is read as 0 and does not count; -1: none.", -1, least=-1
    )
    eod_mask_loss: bool = sets(
        "train.data.documents.eod_counts", "Whether what is predicted from the end of a document does not count.", False
    )
    reset_position_ids: bool = sets(
        "train.data.documents.positions", "Whether positions count from 0 in each document.", False
    )
    reset_attention_mask: bool = sets(
        "train.data.documents.attention", "Whether attention stops at document ends.", False
    )
    create_attention_mask: bool = sets(
        "train.data.documents.attention",
        "Whether there is a mask; without one reset_attention_mask does nothing.",
        True,
    )
    create_compressed_eod_mask: bool = sets(
        "train.data.documents.attention",
        "Whether attention stops at document ends, by a short form of the mask.",
        False,
    )
    eod_pad_length: int | None = no_effect(
        "a row may hold as many documents as it has tokens", "Most documents in a row.", accepted=(128,)
    )
    add_extra_token_to_sequence: bool = sets(
        "train.data.source.extra_token",
        "Whether the last label of a sample is the next sample's first token; if not, it does not count.",
        True,
    )
    drop_last_partial_validation_sequence: bool = sets(
        "train.data.source.drop_last",
        "Whether a last sample of the validation part that is not full is left out.",
        True,
    )
    path_to_cache: str | None = sets(
        "train.data.source.cache", "Folder of index files; if left out, they lie beside each dataset."
    )
    num_dataset_builder_threads: int | None = no_effect(LOADING, "Number of threads that make indices.", accepted=(1,))
    mmap_bin_files: bool | None = no_effect(ALWAYS, "Whether files are mapped into memory.", accepted=(True,))
    s3_cache_path: str | None = refused("datasets are read from files", "Where indices of S3 datasets are kept.")
