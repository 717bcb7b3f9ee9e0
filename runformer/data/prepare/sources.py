"""Which files are meant, and of which kind each is: told by its name and by how it begins."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from runformer.data.prepare.streams import MAGIC, SUFFIXES, ByteStream, Compression, explaining_reads
from runformer.errors import DataError

Kind = Literal["json_lines", "json_list", "csv", "text", "parquet", "arrow"]

_KINDS: dict[str, Literal["json", "csv", "text", "parquet", "arrow"]] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_ENDINGS = ", ".join(_KINDS)
_HEAD = 1 << 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Source:
    """A file to read. ``size`` in bytes and ``changed`` (its mtime in ns) tell whether it is still the same."""

    path: Path
    kind: Kind
    compression: Compression | None
    size: int
    changed: int


def find_sources(inputs: Sequence[str], *, as_text: bool = False) -> list[Source]:
    """The files that ``inputs`` name, in order; those of a folder or a pattern sorted by name.

    Args:
        inputs: files, folders of such files, folders written by ``save_to_disk``, and patterns (``data/*.jsonl``).
        as_text: a file of no known kind is plain text.

    Raises:
        DataError: something is not there, or is of no known kind.
    """
    files = [file for name in inputs for file in _files_of(name)]
    return [_source(file, as_text) for file in dict.fromkeys(files)]


def _files_of(name: str) -> Iterable[Path]:
    path = Path(name)
    if path.is_dir():
        return _files_in(path)
    if path.exists() or not glob.has_magic(name):
        return [path]
    found = sorted(Path(match) for match in glob.glob(name, recursive=True))  # noqa: PTH207  absolute ones too
    if not found:
        raise DataError(f"no file is named like {name}", hint="check --input")
    return [file for match in found for file in (_files_in(match) if match.is_dir() else [match])]


def _files_in(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        return _files_in(_train_split(folder))
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return [folder / name for name in _saved_files(folder / "state.json")]
    found = sorted(file for file in folder.rglob("*") if file.is_file() and _is_known(file, folder))
    if not found:
        raise DataError(
            f"{folder} holds no file of a known kind", hint=f"names end in {_ENDINGS}, or one more in .gz …"
        )
    return found


def _is_known(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and _bare_suffix(file) in _KINDS


def _train_split(folder: Path) -> Path:
    """A folder of several splits stands for its training split."""
    splits = _read_json(folder / "dataset_dict.json").get("splits")
    splits = splits if isinstance(splits, list) else []
    if "train" in splits:
        return folder / "train"
    raise DataError(f"{folder} holds the splits {', '.join(map(str, splits))}", hint=f"name one: {folder}/SPLIT")


def _saved_files(state: Path) -> Iterator[str]:
    entries = _read_json(state).get("_data_files")
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
            raise DataError(f"{state} is not what save_to_disk writes")
        yield entry["filename"]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="write the dataset again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is not what save_to_disk writes")
    return value


def _bare_suffix(path: Path) -> str:
    """The suffix that tells the kind: what stands before ``.gz`` and its like."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _source(path: Path, as_text: bool) -> Source:
    with explaining_reads(path):
        stat = path.stat()
        if path.is_dir():
            raise DataError(f"{path} is a folder")
        with path.open("rb") as file:
            head = file.read(8)
    compression = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    named = SUFFIXES.get(path.suffix.lower())
    if named is not None and compression is None and head:
        raise DataError(f"{path} is named as compressed, but does not begin so", hint="rename or compress it")
    return Source(path, _kind(path, head, compression, as_text), compression, stat.st_size, stat.st_mtime_ns)


def _kind(path: Path, head: bytes, compression: Compression | None, as_text: bool) -> Kind:
    if head.startswith(b"PAR1"):
        return "parquet"
    kind = _KINDS.get(_bare_suffix(path))
    match kind:
        case "parquet":
            raise DataError(f"{path} is no Parquet file: it does not begin with PAR1", hint="copy or download it again")
        case "csv" | "text" | "arrow":
            return kind
        case "json":
            return "json_list" if _first_character(path, compression) == b"[" else "json_lines"
    first = _first_character(path, compression)
    if first in (b"[", b"{"):
        return "json_list" if first == b"[" else "json_lines"
    if as_text:
        return "text"
    nearest = get_close_matches(_bare_suffix(path), _KINDS, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise DataError(
        f"{path}: neither its name nor its beginning tells what kind of file it is",
        hint=f"{hint}names end in {_ENDINGS}; --format text reads it as plain text",
    )


def _first_character(path: Path, compression: Compression | None) -> bytes:
    with ByteStream(path, compression) as stream:
        return stream.read(_HEAD).removeprefix(_BYTE_ORDER_MARK).lstrip()[:1]
