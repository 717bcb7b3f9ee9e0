"""From ``MultiSourceDataLoader`` to a mixture of sources."""

from __future__ import annotations

from dataclasses import fields, replace

from runformer.config.data_sources import Mixture, MixturePart, TableFiles
from runformer.config.problems import Report
from runformer.config.resolve_loader import LoaderPlace, note_other_keys
from runformer.config.resolve_mindrecord import mindrecord_files, plugin_handlers
from runformer.config.resolve_tables import COLUMNS, documents_of, makes_rows, table_columns, table_files, with_borders
from runformer.config.sections import Config
from runformer.config.sections.data import TABLES, DataLoader, Dataset, SubLoader
from runformer.config.task import DataOptions, DocumentOptions, ModelTask

_PARTS = ("MindDataset", *TABLES)
_IN_ORDER = (False, "files")
_ROUNDING = 1e-5  # how far from 1 the sum of ratios may be, as in the original


def mixture_options(
    options: DataOptions, config: Config, section: str, model: ModelTask, report: Report
) -> DataOptions:
    """A dataset that is mixed of several; ``options`` is what all kinds of datasets share.

    Raises:
        ConfigError: a file is not there.
    """
    dataset: Dataset = getattr(config, section)
    loader = dataset.data_loader
    path = f"{section}.data_loader"
    place = LoaderPlace(path, config, dataset, model, report)
    parts, shifted, documents = [], [], []
    for number, sub in enumerate(loader.sub_data_loader or []):
        here = replace(place, path=f"{path}.sub_data_loader[{number}]")
        note_other_keys(sub, here.path, report)
        part, borders = _part(_with_common_keys(sub, loader), here)
        parts.append(part)
        documents.append(borders)
        shifted.append(
            options.already_shifted and not (isinstance(part.source, TableFiles) and makes_rows(part.source))
        )
    if not all(part.source.paths for part in parts):
        parts = []  # a plan cannot look at a mixture of which something is missing
    if not loader.sub_data_loader:
        place.error("sub_data_loader", "is not set: the list of loaders that are mixed")
    if len(set(shifted)) > 1:
        text = "some parts make their rows here, whose labels are not shifted, and others have shifted ones"
        place.error("sub_data_loader", f"cannot be mixed with input_sliced_sig: {text}")
    borders_of_all = _documents(documents, place) or options.documents
    shuffle = loader.shuffle
    if shuffle is None:
        shuffle = section == "train_dataset"
    return replace(
        options,
        source=Mixture(
            tuple(parts), _counts(loader, len(loader.sub_data_loader or []), place), shuffle not in _IN_ORDER
        ),
        shuffle="source",
        columns=with_borders(tuple(dataset.input_columns or _columns(loader)), borders_of_all),
        already_shifted=any(shifted),
        documents=borders_of_all,
    )


def _with_common_keys(sub: SubLoader, loader: DataLoader) -> SubLoader:
    common = loader.sub_data_loader_args
    if common is None:
        return sub
    given = {item.name: value for item in fields(SubLoader) if (value := getattr(common, item.name)) not in (None, {})}
    return replace(sub, **given)


def _part(sub: SubLoader, place: LoaderPlace) -> tuple[MixturePart, DocumentOptions | None]:
    kind = sub.type or "MindDataset"
    if place.report.given(f"{place.path}.shuffle"):
        place.report.no_effect(f"{place.path}.shuffle", "the mixture's own shuffle decides")
    if kind in TABLES:
        source = table_files(sub, place)
        return MixturePart(source, (), sub.num_samples, place.path), documents_of(sub, source, place)
    if kind != "MindDataset":
        place.error("type", f"is {kind!r}, which cannot be mixed; these can: {', '.join(_PARTS)}")
        return MixturePart(TableFiles(())), None
    files = mindrecord_files(sub, place.path, f"{place.path}.dataset_dir", place.report)
    handlers = plugin_handlers(sub, place.path, place.report)
    return MixturePart(files, handlers, sub.num_samples, place.path), None


def _columns(loader: DataLoader) -> tuple[str, ...]:
    """Tables have tokens and labels if nothing else is said; so must the others then."""
    tables = [sub for sub in loader.sub_data_loader or [] if sub.type in TABLES]
    if tables:
        return table_columns(_with_common_keys(tables[0], loader), None)
    return COLUMNS[:1]


def _documents(found: list[DocumentOptions | None], place: LoaderPlace) -> DocumentOptions | None:
    """How documents are told apart: by their borders, where a row without any is one document; or by a token."""
    some = [borders for borders in found if borders is not None]
    if not some:
        return None
    if some[0].eod is not None and len(set(found)) > 1:
        place.error("sub_data_loader", "has parts whose documents end in different ways: create_compressed_eod_mask")
    return some[0]


def _counts(loader: DataLoader, parts: int, place: LoaderPlace) -> tuple[int, ...] | None:
    """The samples of each part in an epoch; None: each part once."""
    ratios, counts = loader.dataset_ratios, loader.nums_per_dataset
    for key, listed in (("dataset_ratios", ratios), ("nums_per_dataset", counts)):
        if listed is not None and len(listed) != parts:
            place.error(key, f"has {len(listed)} numbers for {parts} parts")
            return None
    if ratios is None:
        if loader.samples_count is not None:
            place.error("samples_count", "goes with dataset_ratios, which is not set")
        if counts is not None and not any(counts):
            place.error("nums_per_dataset", "asks for no samples at all")
        return None if counts is None else tuple(counts)
    if counts is not None:
        place.report.no_effect(f"{place.path}.nums_per_dataset", "dataset_ratios decides")
    if abs(sum(ratios) - 1) > _ROUNDING:
        place.error("dataset_ratios", f"must add up to 1, not {sum(ratios):g}")
    if loader.samples_count is None:
        place.error("samples_count", "is not set: dataset_ratios are shares of it")
        return None
    return _shares(ratios, loader.samples_count)


def _shares(ratios: list[float], total: int) -> tuple[int, ...]:
    """Whole numbers in proportion that add up to ``total``: what is left goes to the largest fractions."""
    exact = [ratio * total / (sum(ratios) or 1) for ratio in ratios]
    shares = [int(share + _ROUNDING) for share in exact]
    by_fraction = sorted(range(len(exact)), key=lambda part: (shares[part] - exact[part], part))
    for part in by_fraction[: max(0, total - sum(shares))]:
        shares[part] += 1
    return tuple(shares)
