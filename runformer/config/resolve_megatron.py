"""From a BlendedMegatronDatasetDataLoader to its files and what is done at document ends."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from runformer.config.paths import absolute, existing
from runformer.config.problems import Report, cut, nearest
from runformer.config.sections.data import Dataset
from runformer.config.sections.megatron import MegatronConfig
from runformer.config.shares import PARTS, split_numbers
from runformer.config.task import DataOptions, DocumentOptions, MegatronFiles, ModelTask

COLUMNS = ("input_ids", "labels")
_ALL_COLUMNS = (*COLUMNS, "loss_mask", "position_ids", "attention_mask", "actual_seq_len")
_ELSEWHERE = re.compile(r"^(s3|msc|https?)://")
_NOTHING = MegatronFiles((), (), None, None, 0)

Part = Literal["train", "valid", "test"]


def megatron_files(dataset: Dataset, section: str, report: Report) -> MegatronFiles:
    """Which datasets are read, and how samples are drawn from them. ``sequence_length`` may still be 0.

    Raises:
        ConfigError: a file is not there.
    """
    config, path = dataset.data_loader.config, f"{section}.data_loader"
    part = _part(dataset, section, report)
    own_key = f"{part}_data_path"
    listed = getattr(config, own_key)
    key = f"{path}.config.{'data_path' if listed is None else own_key}"
    datasets, weights = _blend(config.data_path if listed is None else listed, key, report)
    if not datasets:
        report.fill_in(key, "is not set: it names the datasets, without .bin and .idx")
        return _NOTHING
    if listed is not None and len(datasets) == 1:
        weights = None
    size = _size(dataset, part, path, report)
    if size is None and weights is not None:
        report.error(f"{path}.sizes", f"has no number for {part}, which datasets with weights need")
    there = [_is_there(each, key, report) for each in datasets]
    if not all(there):
        return _NOTHING
    return MegatronFiles(
        prefixes=tuple(absolute(each.name) for each in datasets),
        names=tuple(each.name for each in datasets),
        weights=weights,
        size=size,
        sequence_length=config.seq_length or 0,
        split=_split(config, part, path, report) if listed is None else None,
        part=part,
        seed=config.seed,
        pad=config.pad,
        extra_token=config.add_extra_token_to_sequence,
        drop_last=config.drop_last_partial_validation_sequence,
        cache=absolute(config.path_to_cache) if config.path_to_cache else None,
    )


def megatron_options(
    options: DataOptions, source: MegatronFiles, dataset: Dataset, model: ModelTask, report: Report
) -> DataOptions:
    """The options of a dataset with what this loader has of its own."""
    path = f"{options.section}.data_loader.config"
    _check_columns(dataset, f"{options.section}.input_columns", report)
    length = source.sequence_length or model.sequence_length
    if length is None:
        report.error(f"{path}.seq_length", "is not set, and model.model_config.seq_length is not either")
    elif model.sequence_length not in (None, length):
        report.error(f"{path}.seq_length", f"is {length}, but model.model_config.seq_length is {model.sequence_length}")
    return replace(
        options,
        source=replace(source, sequence_length=length or 0),
        columns=COLUMNS,
        shuffle=options.shuffle if dataset.data_loader.shuffle else None,
        num_samples=source.size,
        already_shifted=True,
        pad_token_id=None,
        ignore_token_id=-100,
        documents=_documents(dataset.data_loader.config, path, report) or options.documents,
        padding=None,
    )


def _part(dataset: Dataset, section: str, report: Report) -> Part:
    """An evaluation takes the part for validation, if there is one."""
    loader = dataset.data_loader
    wanted = loader.phase
    if wanted is None:
        sizes = loader.sizes or []
        has_valid = loader.config.valid_data_path is not None or (len(sizes) > 1 and sizes[1] != 0)
        wanted = "valid" if section == "eval_dataset" and has_valid else "train"
    for part in get_args(Part):
        if part == wanted:
            return cast(Part, part)
    report.error(f"{section}.data_loader.phase", f"must be one of {', '.join(PARTS)}, not {wanted!r}")
    return "train"


def _size(dataset: Dataset, part: Part, path: str, report: Report) -> int | None:
    """How many samples of a part are used; None: all."""
    sizes = dataset.data_loader.sizes
    if sizes is None or len(sizes) > len(PARTS):
        wrong = "is not set" if sizes is None else f"has {len(sizes)} numbers"
        report.error(
            f"{path}.sizes", f"{wrong}: it is three, such as [8000, 0, 0]: samples to train, validate and test"
        )
        return 0
    place = PARTS.index(part)
    size = sizes[place] if place < len(sizes) else 0
    if size == 0:
        report.error(f"{path}.sizes", f"asks for no sample of {part}, whose number is the {_ORDINALS[place]}")
    return size


_ORDINALS = ("first", "second", "third")


def _split(config: MegatronConfig, part: Part, path: str, report: Report) -> str | None:
    if config.split is None:
        report.error(f"{path}.config.split", "is not set: '1, 0, 0' uses all documents for training")
        return None
    try:
        share = split_numbers(config.split)[PARTS.index(part)]
    except ValueError:
        text = f"must be one to three shares, such as '969, 30, 1', not {cut(config.split)!r}"
        report.error(f"{path}.config.split", text)
        return config.split
    if share == 0:
        report.error(f"{path}.config.split", f"is {config.split!r}: it leaves nothing for {part}")
    return config.split


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class _Dataset:
    """One dataset as it is written: what the user calls it, and the flag that would give another."""

    name: str
    flag: str


def _blend(listed: str | list[str] | None, key: str, report: Report) -> tuple[list[_Dataset], tuple[float, ...] | None]:
    """The datasets, and their weights where every other item is a number."""
    if isinstance(listed, str):
        return [_Dataset(listed.strip(), key)], None
    items = listed or []
    datasets = [_Dataset(item.strip(), f"{key}.{place}") for place, item in enumerate(items)]
    weights = [_number(item) for item in items[::2]]
    if len(items) % 2 or all(weight is None for weight in weights):
        return datasets, None
    found = [weight for weight in weights if weight is not None and 0 < weight < math.inf]
    if len(found) < len(weights):
        wrong = next(item for item, weight in zip(items[::2], weights, strict=True) if weight not in found)
        text = f"has {cut(wrong)!r} where a weight should stand: it is weight, path, weight, path, …, or only paths"
        report.error(key, text)
        found = [1.0] * len(weights)
    return datasets[1::2], tuple(found)


def _is_there(dataset: _Dataset, key: str, report: Report) -> bool:
    """Whether both files can be seen.

    Raises:
        ConfigError: naming the one that cannot, unless the run is only planned.
    """
    if _ELSEWHERE.match(dataset.name):
        report.error(key, f"is {cut(dataset.name)!r}: datasets are read from files")
        return False
    found = [existing(report, key, f"{dataset.name}{ending}", flag=dataset.flag) for ending in (".idx", ".bin")]
    return None not in found


def _check_columns(dataset: Dataset, key: str, report: Report) -> None:
    for column in dataset.input_columns or ():
        if column not in _ALL_COLUMNS:
            near = nearest(column, _ALL_COLUMNS)
            suggestion = f": did you mean {near!r}?" if near else ""
            report.error(key, f"has {column!r}{suggestion} This loader has {', '.join(_ALL_COLUMNS)}")


def _documents(config: MegatronConfig, path: str, report: Report) -> DocumentOptions | None:
    attention = config.create_compressed_eod_mask or (config.reset_attention_mask and config.create_attention_mask)
    if config.reset_attention_mask and not attention:
        report.notice(f"{path}.reset_attention_mask does nothing, since create_attention_mask is False")
    if not (attention or config.reset_position_ids or config.eod_mask_loss):
        return None
    if config.eod < 0:
        report.error(f"{path}.eod", "is not set: documents cannot be told apart without the token that ends them")
    elif config.eod == config.pad:
        report.error(f"{path}.eod", f"and pad are both {config.eod}: the ends of documents would be padding")
    return DocumentOptions(
        eod=config.eod,
        attention=attention,
        positions=config.reset_position_ids,
        eod_counts=not config.eod_mask_loss,
    )
