"""From a loader that the ``datasets`` library reads for to its files, and to the meaning of their rows."""

from __future__ import annotations

import glob
import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from runformer.config.data_sources import EncodeOptions, PackOptions, TableFiles
from runformer.config.paths import absolute, existing, is_placeholder, is_there
from runformer.config.problems import Report, nearest
from runformer.config.resolve_handlers import handler_options
from runformer.config.resolve_loader import LoaderPlace
from runformer.config.sections import Config
from runformer.config.sections.data import Dataset, SubLoader
from runformer.config.task import DataOptions, DocumentOptions, ModelTask, Shuffle

FORMATS = {
    "json": (".json", ".jsonl"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
    "text": (".txt",),
    "arrow": (".arrow",),
}
COLUMNS = ("input_ids", "labels")
# Columns that the original's loader makes of the borders of documents; here these are kept as they are.
_MADE_OF_BORDERS = ("loss_mask", "position_ids", "attention_mask")
_BORDERS = "actual_seq_len"
_OFFLINE = "nothing is downloaded: download it, and name its folder or its files"


def table_options(options: DataOptions, config: Config, section: str, model: ModelTask, report: Report) -> DataOptions:
    """A dataset whose rows the ``datasets`` library reads; ``options`` is what all kinds of datasets share.

    Raises:
        ConfigError: a file is not there.
    """
    dataset: Dataset = getattr(config, section)
    loader = dataset.data_loader
    place = LoaderPlace(f"{section}.data_loader", config, dataset, model, report)
    source = table_files(loader, place)
    if loader.shuffle in ("global", "infile", "files"):
        place.error("shuffle", f"is {loader.shuffle!r}, which only a mixture knows: True or False")
    shuffle: Shuffle | None = None  # left out it means False, as in the original
    if loader.shuffle:
        shuffle = "reference" if loader.shuffle == "reference" else "hashed"
    if source.streaming and shuffle:
        place.error("shuffle", "is True, but a stream comes in the order of its files: set one of the two to False")
    documents = documents_of(loader, source, place) or options.documents
    return replace(
        options,
        source=source,
        shuffle=shuffle,
        columns=with_borders(table_columns(loader, dataset.input_columns), documents),
        already_shifted=options.already_shifted and not makes_rows(source),
        documents=documents,
    )


def table_columns(loader: SubLoader, input_columns: list[str] | None) -> tuple[str, ...]:
    """Tokens and labels among the columns that a dataset names, and the borders of documents where it names them."""
    named = tuple(input_columns or loader.column_names or COLUMNS)
    kept = tuple(name for name in named if name not in _MADE_OF_BORDERS)
    return kept if set(kept) - {_BORDERS} else (*COLUMNS, *kept)


def with_borders(columns: tuple[str, ...], documents: DocumentOptions | None) -> tuple[str, ...]:
    """The columns, with that of borders where it is this that says where documents end."""
    needed = documents is not None and documents.eod is None and _BORDERS not in columns
    return (*columns, _BORDERS) if needed else columns


def makes_rows(source: TableFiles) -> bool:
    """Whether handlers make the rows: those have labels where their tokens stand, whatever the model is told."""
    return any(isinstance(handler, EncodeOptions | PackOptions) for handler in source.handlers)


def documents_of(loader: SubLoader, source: TableFiles, place: LoaderPlace) -> DocumentOptions | None:
    """Whether a row's documents are seen apart, and who says where they end."""
    packed = any(isinstance(handler, PackOptions) for handler in source.handlers)
    if packed or loader.packing or loader.create_attention_mask:
        return DocumentOptions()
    if not loader.create_compressed_eod_mask:
        return None
    ends = place.model.options.eos_token_ids if place.model.options else ()
    eod = place.dataset.eod_token_id
    if eod is None and len(ends) == 1:
        eod = ends[0]
    if eod is None:
        section = place.path.partition(".")[0]
        place.error("create_compressed_eod_mask", f"needs the token that ends a document: set {section}.eod_token_id")
    return DocumentOptions(eod=eod)


def table_files(loader: SubLoader, place: LoaderPlace) -> TableFiles:
    """The files of a loader and what its handlers do.

    Raises:
        ConfigError: a file is not there.
    """
    saved = loader.load_func == "load_from_disk"
    found = _saved(loader, place) if saved else _loaded(loader, place)
    streaming = bool(loader.streaming)
    arguments = {**found.arguments, **loader.arguments}
    _check_arguments(loader.arguments, found, place)
    if streaming and saved:
        place.error("streaming", "is True, but what load_from_disk opens is mapped, not read: leave it out")
    if streaming and "[" in (loader.split or ""):
        place.error("split", f"is {loader.split!r}, but a stream has no parts: use the data handlers take and skip")
    if loader.size and not streaming:
        place.report.no_effect(f"{place.path}.size", "only a stream has to be told its size")
    missing = len(place.report.to_fill_in)
    handlers = handler_options(loader, place, streaming=streaming)
    if len(place.report.to_fill_in) > missing:  # a plan cannot look at rows that cannot be made yet
        found = replace(found, paths=())
    return replace(
        found,
        split=loader.split or "train",
        arguments=arguments,
        streaming=streaming,
        rows=loader.size if streaming else None,
        handlers=handlers,
    )


def _saved(loader: SubLoader, place: LoaderPlace) -> TableFiles:
    for key in ("data_files", "data_dir", "name"):
        if getattr(loader, key):
            place.error(key, "belongs to load_dataset: load_from_disk opens the folder that path names")
    folder = _folder(loader.path, place) if loader.path else None
    if not loader.path:
        place.report.fill_in(f"{place.path}.path", "is not set: the folder that save_to_disk has made")
    return TableFiles((folder,) if folder else (), saved=True)


def _folder(name: str, place: LoaderPlace) -> Path | None:
    path = existing(place.report, f"{place.path}.path", name, flag=f"{place.path}.path")
    if path is not None and not path.is_dir():
        place.error(
            "path", f"is {name!r}, which is a file: load_from_disk opens a folder; leave load_func out for a file"
        )
        return None
    return path


def _loaded(loader: SubLoader, place: LoaderPlace) -> TableFiles:
    """What ``load_dataset`` opens: files of one format, or a folder."""
    name = loader.path
    arguments: dict[str, Any] = {"name": loader.name} if loader.name else {}
    if not name and not loader.data_files:
        place.report.fill_in(
            f"{place.path}.path", "is not set: a folder, a file, or a format beside data_files, such as json"
        )
        return TableFiles(())
    folder = Path.cwd()
    if loader.data_dir:
        folder = (
            existing(place.report, f"{place.path}.data_dir", loader.data_dir, flag=f"{place.path}.data_dir") or folder
        )
    if name and name not in FORMATS:
        path = _local(name, place)
        if path is None:
            return TableFiles(())
        if not path.is_dir():
            return _of_format({"train": (path,)}, None, arguments, place)
        if not loader.data_files:
            if loader.data_dir:
                arguments["data_dir"] = loader.data_dir
            return TableFiles((path,), arguments=arguments)
        folder = path / (loader.data_dir or "")
    files = _data_files(loader.data_files, folder, place) if loader.data_files else {}
    if not loader.data_files:
        place.report.fill_in(f"{place.path}.data_files", f"is not set: the files that are {name}")
    return _of_format(files, name if name in FORMATS else None, arguments, place)


def _local(name: str, place: LoaderPlace) -> Path | None:
    """A path that names a file or folder here; anything else would be a name on the hub."""
    path = absolute(name)
    if is_there(path):
        return path
    near = nearest(name, FORMATS)
    advice = "replace this placeholder" if is_placeholder(name) else _OFFLINE
    suggestion = f"did you mean {near!r}? " if near else ""
    text = f"is {name!r}: {suggestion}it is no file or folder here, and no format ({', '.join(FORMATS)}); {advice}"
    place.report.fill_in(f"{place.path}.path", text)
    return None


def _data_files(given: Any, folder: Path, place: LoaderPlace) -> dict[str, tuple[Path, ...]]:
    """The files of each split; without splits they are those of ``train``."""
    splits = given if isinstance(given, Mapping) else {"train": given}
    found = {}
    for split, names in splits.items():
        listed = names if isinstance(names, list) else [names]
        found[split] = tuple(path for name in listed for path in _matching(name, folder, place))
    return found


def _matching(name: object, folder: Path, place: LoaderPlace) -> list[Path]:
    key = f"{place.path}.data_files"
    if not isinstance(name, str):
        place.error("data_files", f"must name files, not hold {name!r}")
        return []
    if "://" in name:
        place.error("data_files", f"is {name!r}: {_OFFLINE}")
        return []
    if not glob.has_magic(name) or is_there(folder / name):
        path = existing(place.report, key, str(folder / Path(name).expanduser()), flag=key)
        return [path] if path else []
    files = [Path(path) for path in glob.glob(str(folder / name), recursive=True)]  # noqa: PTH207 - of any path
    if not any(path.is_file() for path in files):
        place.report.fill_in(key, f"is {name!r}: no file has such a name")
    return sorted(path for path in files if path.is_file())


def _of_format(
    files: Mapping[str, tuple[Path, ...]], name: str | None, arguments: Mapping[str, Any], place: LoaderPlace
) -> TableFiles:
    paths = tuple(path for split in files.values() for path in split)
    if name is None and paths:
        name = _format_of(paths[0])
        if name is None:
            endings = ", ".join(ending for endings in FORMATS.values() for ending in endings)
            text = f"leads to {paths[0].name!r}, whose ending says no format ({endings}): set path to one"
            place.error("path", f"{text}: {', '.join(FORMATS)}")
    return TableFiles(paths, format=name, files=files, arguments=arguments)


def _format_of(path: Path) -> str | None:
    """By its ending, behind which a second one may tell how it is packed: ``x.jsonl.gz``."""
    endings = {ending: name for name, endings in FORMATS.items() for ending in endings}
    return next((endings[suffix] for suffix in reversed(path.suffixes[-2:]) if suffix in endings), None)


def _check_arguments(given: Iterable[str], source: TableFiles, place: LoaderPlace) -> None:
    """Keys that the schema does not know go to the library, if that knows them."""
    if not given:
        return
    try:
        known = _library_arguments(source)
    except ImportError:  # opening the data will say so
        return
    function = "load_from_disk" if source.saved else "load_dataset"
    for name in given:
        if name == "features":
            place.error(name, "cannot be written in a task file: a column has the type that its file gives it")
        elif name not in known:
            near = nearest(name, (*known, *_own_keys()))
            text = f"is not a known key, and {function} of the datasets library does not take it"
            place.error(name, f"{text}{f': did you mean {near!r}?' if near else ''}")


def _own_keys() -> list[str]:
    return [item.name for item in fields(SubLoader)]


def _library_arguments(source: TableFiles) -> set[str]:
    import datasets

    if source.saved:
        return set(inspect.signature(datasets.load_from_disk).parameters)
    known = set(inspect.signature(datasets.load_dataset).parameters) - {"config_kwargs"}
    if source.format:
        module = importlib.import_module(f"datasets.packaged_modules.{source.format}.{source.format}")
        classes = [item for item in vars(module).values() if inspect.isclass(item)]
        for config in classes:
            if issubclass(config, datasets.BuilderConfig) and config is not datasets.BuilderConfig:
                known |= set(inspect.signature(config).parameters)
    return known
