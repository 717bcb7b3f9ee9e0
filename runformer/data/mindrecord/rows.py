"""Where each record of a data file lies, found by walking its pages from length prefix to length prefix."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runformer.data.mindrecord.header import LENGTH, RAW, Header

Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowTable:
    """Byte ranges in the file, length prefixes included, one entry a record: int64 arrays of shape (rows,)."""

    blob_begin: Positions
    blob_end: Positions
    raw_begin: Positions
    raw_end: Positions


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A run of records: one blob page, and the part of a raw page with the same rows. Places are in the file."""

    number: int
    start_row: int
    end_row: int
    blob_begin: int
    blob_end: int
    raw_begin: int
    raw_end: int


def row_groups(header: Header) -> Iterator[RowGroup]:
    """The groups of a file in the order of their rows.

    Raises:
        ValueError: the header names no place for a group's raw records, or two.
    """
    places = _raw_places(header)
    for page in header.blob_pages:
        number = page.page_type_id
        if number not in places:
            raise ValueError(f"the header has no raw page for rows {page.start_row} to {page.end_row}")
        begin = header.page_begin(page.page_id)
        yield RowGroup(number, page.start_row, page.end_row, begin, begin + page.used, *places[number])


def _raw_places(header: Header) -> dict[int, tuple[int, int]]:
    places: dict[int, tuple[int, int]] = {}
    for page in header.pages:
        if page.kind != RAW or page.used == 0:  # an empty page still lists a group 0
            continue
        ends = [offset for _, offset in page.row_groups[1:]] + [page.used]
        for (group, offset), end in zip(page.row_groups, ends, strict=True):
            if group in places or offset > end:
                raise ValueError(f"the row groups of page {page.page_id} cannot be")
            begin = header.page_begin(page.page_id)
            places[group] = begin + offset, begin + end
    return places


def scan_rows(data: mmap.mmap, header: Header) -> RowTable:
    """Find all records of a data file.

    Raises:
        ValueError: the pages do not hold the rows that the header says.
    """
    blob, raw = [], []
    for group in row_groups(header):
        rows = group.end_row - group.start_row
        blob.append(_boundaries(data, group.blob_begin, group.blob_end, rows))
        raw.append(_boundaries(data, group.raw_begin, group.raw_end, rows))
    return RowTable(*_joined(blob), *_joined(raw))


def _joined(boundaries: list[Positions]) -> tuple[Positions, Positions]:
    nothing = np.empty(0, dtype=np.int64)
    begin = np.concatenate([nothing, *(positions[:-1] for positions in boundaries)])
    return begin, np.concatenate([nothing, *(positions[1:] for positions in boundaries)])


def _boundaries(data: mmap.mmap, begin: int, end: int, rows: int) -> Positions:
    """Where each of ``rows`` records begins, and the last one ends: shape (rows + 1,)."""
    positions = [begin]
    position = begin
    for _ in range(rows):
        if position + LENGTH.size > end:
            break
        position += LENGTH.size + LENGTH.unpack_from(data, position)[0]
        positions.append(position)
    if position != end or len(positions) != rows + 1:
        raise ValueError(f"bytes {begin} to {end} should hold {rows} records, but the lengths in them do not add up")
    return np.array(positions, dtype=np.int64)
