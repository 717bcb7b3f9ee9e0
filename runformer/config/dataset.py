"""A dataset's part of the Task: in which order its rows come, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runformer.config.data_sources import MegatronFiles, MindRecordFiles, Mixture, TableFiles
from runformer.config.options import PluginOptions

Shuffle = Literal["reference", "hashed", "source"]


@dataclass(frozen=True, slots=True)
class DocumentOptions:
    """Rows that hold several documents, and what starts anew at each.

    A document ends behind a token ``eod``; with None it is the loader that says where documents begin. ``attention``
    sees nothing before its document, ``positions`` count from 0 in each, and ``eod_counts`` says whether the loss
    counts what is predicted from an ``eod``.
    """

    eod: int | None = None
    attention: bool = True
    positions: bool = True
    eod_counts: bool = True


@dataclass(frozen=True, slots=True)
class PaddingOptions:
    """Rows of any length, padded to the longest of a batch, rounded up to a multiple of ``divisor`` + ``remainder``."""

    divisor: int = 1
    remainder: int = 0


DataSource = MindRecordFiles | MegatronFiles | TableFiles | Mixture


@dataclass(frozen=True, slots=True)
class DataOptions:
    """One dataset of token rows.

    ``columns`` are those of the source, in the order (tokens, labels, ignored…). With ``already_shifted``
    rows have ``sequence_length`` tokens and labels are the next tokens; otherwise rows have one more,
    inputs are ``[:-1]`` and labels ``[1:]``. With ``handlers`` a row is what these, one after the other, make
    of a record, and ``columns`` are those of the last one. ``shuffle`` None is the order of the files,
    "reference" MindSpore's shuffle number for number, "hashed" a permutation that takes no memory; with "source" the
    source goes on, epoch after epoch, in an order of its own. A dataset is passed over ``repeat`` times in an epoch.
    """

    source: DataSource
    columns: tuple[str, ...]
    shuffle: Shuffle | None
    seed: int
    num_samples: int | None = None
    drop_remainder: bool = True
    repeat: int = 1
    already_shifted: bool = False
    pad_token_id: int | None = None
    ignore_token_id: int = -100
    documents: DocumentOptions | None = None
    padding: PaddingOptions | None = None
    section: str = "train_dataset"  # of the task file, for messages
    handlers: tuple[PluginOptions, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files and folders it is read from."""
        return self.source.paths
