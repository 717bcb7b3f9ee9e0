"""Where the rows of a dataset come from: its part of the Task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runformer.config.options import PluginOptions, TokenizerOptions


@dataclass(frozen=True, slots=True)
class MindRecordFiles:
    """MindRecord files; a folder stands for all files in it whose names end in ``mindrecord`` and a number or none."""

    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class MegatronFiles:
    """Indexed datasets of Megatron-LM, of which samples are drawn as Megatron-core does.

    ``prefixes`` are the paths of the datasets without ``.bin`` and ``.idx``, ``names`` what the user calls them: index
    files are known by these. Each dataset gives its share of ``weights``, or, where that is None, what it has. Of the
    documents ``part`` of ``split`` is used (None: all); ``size`` samples are made of them (None: one pass). With
    ``extra_token`` the last label of a sample is the first token of the next, else it is ``pad``, a token that neither
    is read nor counts. Index files lie in ``cache``, or, where that is None, beside each dataset.
    """

    prefixes: tuple[Path, ...]
    names: tuple[str, ...]
    weights: tuple[float, ...] | None
    size: int | None
    sequence_length: int
    split: str | None = None
    part: Literal["train", "valid", "test"] = "train"
    seed: int = 1234
    pad: int = -1
    extra_token: bool = True
    drop_last: bool = True  # of "valid": leave out a sample that is not full
    cache: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The two files of each dataset."""
        return tuple(Path(f"{prefix}.{ending}") for prefix in self.prefixes for ending in ("bin", "idx"))


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """A record of text becomes a row of tokens and labels.

    ``form`` is what the record holds: an instruction, a conversation, or a text, in ``column`` or, where that is None,
    in the columns that usually hold it. A row is cut to ``length`` tokens, and filled up to that on the side
    ``padding``; None leaves it shorter.
    """

    form: Literal["alpaca", "messages", "text"]
    tokenizer: TokenizerOptions
    length: int
    padding: Literal["left", "right"] | None = "right"
    column: str | None = None


@dataclass(frozen=True, slots=True)
class PackOptions:
    """Rows of ``length`` tokens from several documents each.

    ``pack`` keeps documents whole and leaves out those that are longer, ``truncate`` joins and cuts them. What is left
    of a row is filled with ``pad_token_id``; None: the dataset's, or 0.
    """

    length: int
    strategy: Literal["pack", "truncate"] = "pack"
    pad_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """A method of ``datasets.Dataset`` that gives another table, and its arguments by name."""

    name: str
    arguments: Mapping[str, Any]


HandlerOptions = EncodeOptions | PackOptions | MethodOptions | PluginOptions


@dataclass(frozen=True, slots=True)
class TableFiles:
    """Tables that the ``datasets`` library opens.

    Either ``files`` in one ``format`` (``json``, ``parquet``, …) for each split, or one folder, whose files say what
    they are, or that was ``saved`` by the library. ``split`` may be a part, such as ``train[:10%]``; ``arguments`` go
    to the library as they are. With ``streaming`` rows are read from the files one after the other, and nothing is
    written to the library's cache; ``rows`` says how many there are where that cannot be seen. ``handlers`` change the
    table, or its records, in turn.
    """

    paths: tuple[Path, ...]
    format: str | None = None
    files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    saved: bool = False
    split: str = "train"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    streaming: bool = False
    rows: int | None = None
    handlers: tuple[HandlerOptions, ...] = ()


@dataclass(frozen=True, slots=True)
class MixturePart:
    """One source of a mixture; ``num_samples`` of its samples are used, None: all. ``name`` is for messages."""

    source: MindRecordFiles | TableFiles
    handlers: tuple[PluginOptions, ...] = ()
    num_samples: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Samples of several sources, in turn and in proportion.

    ``counts``: how many of each part make an epoch, a part that has fewer being repeated; None: each part once.
    ``shuffle``: whether each part comes in a random order, new in each pass over it.
    """

    parts: tuple[MixturePart, ...]
    counts: tuple[int, ...] | None = None
    shuffle: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files and folders of all parts."""
        return tuple(path for part in self.parts for path in part.source.paths)
