"""Ranks that were started with another task, other code or other data than the others are named before they compute."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import xxhash

import runformer
from runformer.config.task import Task
from runformer.errors import ParallelError
from runformer.parallel.group import Group

_OF_A_RANK = {"notices", "device.index"}
"""Settings that ranks have of their own."""
_SHOWN = 6


def require_same_task(world: Group, task: Task) -> None:
    """See that all ranks run the same task with the same code; paths may differ, as folders of machines do.

    Raises:
        ParallelError: as ``require_same``.
    """
    if world.size > 1:
        require_same(world, {**dict(_leaves(task, "")), **_code(task)})


def require_same(world: Group, facts: Mapping[str, object]) -> None:
    """See that all ranks know the same.

    Args:
        world: all ranks.
        facts: what this rank knows, by names for people; the same names on all ranks that know the same.

    Raises:
        ParallelError: on every rank, naming those that differ from most of the others, and in what.
    """
    if world.size == 1:
        return
    digests = [_digest(f"{name}={value!r}") for name, value in facts.items()]
    if len(set(world.gather(_digest(repr(digests))))) > 1:
        raise ParallelError(
            _difference(world, facts, digests),
            hint="start all ranks with the same configuration file, arguments, code and data",
        )


def _difference(world: Group, facts: Mapping[str, object], digests: list[int]) -> str:
    """Who differs, and in what: the digests of all ranks side by side."""
    longest = int(world.largest(torch.tensor(len(digests), device=world.device)).item())
    table = torch.zeros(world.size, longest, dtype=torch.int64, device=world.device)
    table[world.rank, : len(digests)] = torch.tensor(digests)
    rows: list[list[int]] = world.sum(table).tolist()
    counts = Counter(map(tuple, rows))
    usual = max(counts, key=lambda row: counts[row])  # of the like ones rank 0's, which comes first
    others = [rank for rank, row in enumerate(rows) if tuple(row) != usual]
    names = [name for number, name in enumerate(facts) if any(rows[rank][number] != usual[number] for rank in others)]
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    who = f"rank {others[0]} differs" if len(others) == 1 else f"ranks {_listed(others)}{more} differ"
    told = "; ".join(f"{name} ({facts[name]!r:.80} on rank {world.rank})" for name in names[:_SHOWN])
    return f"{who} from the other ranks in {told or 'what is set'}"


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:_SHOWN]))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, object]]:
    """Every single setting under its dotted name."""
    if name in _OF_A_RANK:
        return
    if is_dataclass(value):
        for entry in fields(value):
            yield from _leaves(getattr(value, entry.name), f"{name}.{entry.name}" if name else entry.name)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(value[key], f"{name}.{key}")
    elif not _is_path(value):
        yield name, _plain(value)


def _is_path(value: object) -> bool:
    return isinstance(value, Path) or (isinstance(value, tuple) and any(isinstance(item, Path) for item in value))


def _plain(value: object) -> object:
    """The value, or where that has no text of its own, as classes and functions of plug-ins, its name."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return getattr(value, "__qualname__", type(value).__qualname__)


def _code(task: Task) -> dict[str, object]:
    return {
        "the version of Python": sys.version.split()[0],
        "the version of torch": torch.__version__,
        "the code of runformer": _own_code(),
        "the code of plug-ins": [_digest_of(Path(path)) for path in task.plugins],
    }


@cache
def _own_code() -> str:
    folder = Path(runformer.__file__).parent
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    return xxhash.xxh3_64_hexdigest("".join(name + _digest_of(folder / name) for name in files).encode())


def _digest_of(path: Path) -> str:
    return xxhash.xxh3_64_hexdigest(path.read_bytes())


def _digest(text: str) -> int:
    """63 bits, which an int64 holds."""
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1
