"""Where each record of a data file lies, found page by page when its records are first asked for.

A place takes four bytes a record; opening a file takes none of them, however long it is.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runformer.data.mindrecord.header import LENGTH, RAW, Header
from runformer.data.native import native

Positions = NDArray[np.int64]
Places = NDArray[np.uint32]


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


class RowTable:
    """The byte ranges of a file's records in one kind of page, length prefixes included.

    Args:
        begins: where each row group begins in the file.
        first_rows: the first row of each group, and behind the last one the number of rows.
        find: gives for a group where its records begin, less its own beginning, and where the last one ends: uint32 of
            shape (rows + 1,). Raises ValueError where the group is not sound.

    Attributes:
        first_rows: as above, int64.
        begins: likewise.
        places: what ``find`` gave for one group after the other, uint32; record r of group g is at r + g.
        known: for which groups it was asked, bool.
    """

    def __init__(self, begins: Sequence[int], first_rows: Sequence[int], find: Callable[[int], Places]) -> None:
        self.begins = np.array(begins, dtype=np.int64)
        self.first_rows = np.array(first_rows, dtype=np.int64)
        self.known = np.zeros(len(begins), dtype=bool)
        # One place more than records in each group: where its last record ends. Memory that is not written to is none.
        self.places = np.empty(int(self.first_rows[-1]) + len(begins), dtype=np.uint32)
        self._find = find

    def locate(self, row: int) -> tuple[int, int]:
        """Where a row begins and ends in the file.

        Raises:
            ValueError: the group that it lies in is not sound.
        """
        group = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        self.learn(group)
        begin, end = (int(place) for place in self.places[row + group : row + group + 2])
        return int(self.begins[group]) + begin, int(self.begins[group]) + end

    def learn(self, group: int) -> None:
        """See that the places of a group are known."""
        if not self.known[group]:  # two threads may both find it: they write the same
            begin, end = (int(row) for row in self.first_rows[group : group + 2])
            self.places[begin + group : end + group + 1] = self._find(group)
            self.known[group] = True


def blob_table(groups: Sequence[RowGroup], find: Callable[[RowGroup], Places]) -> RowTable:
    """The blob parts of records, whose places ``find`` gives for a group."""
    first_rows = [*(group.start_row for group in groups), groups[-1].end_row if groups else 0]
    return RowTable([group.blob_begin for group in groups], first_rows, lambda number: find(groups[number]))


def raw_table(groups: Sequence[RowGroup], find: Callable[[RowGroup], Places]) -> RowTable:
    """Their raw parts."""
    first_rows = [*(group.start_row for group in groups), groups[-1].end_row if groups else 0]
    return RowTable([group.raw_begin for group in groups], first_rows, lambda number: find(groups[number]))


def scan_blob(data: mmap.mmap, group: RowGroup) -> Places:
    """Find a group's blob parts by walking from length prefix to length prefix.

    Raises:
        ValueError: its page does not hold the rows that the header says.
    """
    return _walk(data, group.blob_begin, group.blob_end, group.end_row - group.start_row)


def scan_raw(data: mmap.mmap, group: RowGroup) -> Places:
    """Find a group's raw parts, likewise."""
    return _walk(data, group.raw_begin, group.raw_end, group.end_row - group.start_row)


def _walk(data: mmap.mmap, begin: int, end: int, rows: int) -> Places:
    places = np.zeros(rows + 1, dtype=np.uint32)
    filled = boundaries(data, begin, end, places) if native is None else native.boundaries(data, begin, end, places)
    if not filled:
        raise ValueError(f"bytes {begin} to {end} should hold {rows} records, but the lengths in them do not add up")
    return places


def boundaries(data: mmap.mmap, begin: int, end: int, places: Places) -> bool:
    """Where each record begins in a stretch of a file, less ``begin``, and where the last one ends.

    Whether as many records as ``places`` has room for fill the stretch.
    """
    position, rows = begin, len(places) - 1
    for row in range(rows):
        if position + LENGTH.size > end:
            return False
        places[row] = position - begin
        position += LENGTH.size + LENGTH.unpack_from(data, position)[0]
    places[rows] = end - begin
    return position == end
