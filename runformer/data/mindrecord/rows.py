"""Where each record of a data file lies, found page by page when its records are first asked for.

A place of four bytes is kept for every record of 4 KiB and more, and of shorter ones for every so many: from there it
is a short walk. So places take a thousandth of a file at most, whatever the number of its records.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runformer.data.mindrecord.header import LENGTH, RAW, Header
from runformer.data.native import native

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


@dataclass(frozen=True, slots=True)
class Stretch:
    """One kind of part of a row group's records: where these parts begin and end in the file, and how many they are."""

    first_row: int
    rows: int
    begin: int
    end: int


def blobs(groups: Iterable[RowGroup]) -> list[Stretch]:
    """The blob parts."""
    return [Stretch(item.start_row, item.end_row - item.start_row, item.blob_begin, item.blob_end) for item in groups]


def raws(groups: Iterable[RowGroup]) -> list[Stretch]:
    """The raw parts."""
    return [Stretch(item.start_row, item.end_row - item.start_row, item.raw_begin, item.raw_end) for item in groups]


def stride_of(stretches: Sequence[Stretch]) -> int:
    """Of how many records one has a place."""
    rows, size = sum(item.rows for item in stretches), sum(item.end - item.begin for item in stretches)
    return max(1, rows * _FAR // max(1, size))


_FAR = 4096  # bytes from place to place


class RowTable:
    """The byte ranges of one kind of part of a file's records, length prefixes included.

    Args:
        data: the file.
        stretches: of its row groups, in the order of their rows.
        find: gives the places of a stretch, as ``scan`` does, or raises what is to be raised where it is not sound.

    Attributes:
        stride: see ``stride_of``.
        first_rows: the first row of each group, and behind the last one the number of rows: int64.
        first_places: likewise of places.
        begins: where each group begins in the file: int64.
        places: uint32; those of a group say where every ``stride``-th record begins, less the group's own beginning,
            and the last one where its last record ends.
        known: for which groups they were asked for, bool.
    """

    def __init__(self, data: mmap.mmap, stretches: Sequence[Stretch], find: Callable[[Stretch, int], Places]) -> None:
        self.stride = stride_of(stretches)
        rows = np.array([0, *(item.rows for item in stretches)], dtype=np.int64)
        counts = -(-rows // self.stride) + 1
        counts[0] = 0
        self.first_rows, self.first_places = np.cumsum(rows), np.cumsum(counts)
        self.begins = np.array([item.begin for item in stretches], dtype=np.int64)
        self.known = np.zeros(len(stretches), dtype=bool)
        self.places = np.empty(int(self.first_places[-1]), dtype=np.uint32)  # what is not written to takes no memory
        self._data, self._stretches, self._find = data, stretches, find

    def locate(self, row: int) -> tuple[int, int]:
        """Where a row begins and ends in the file."""
        group = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        self.learn(group)
        first_place, begin = int(self.first_places[group]), int(self.begins[group])
        place, hops = divmod(row - int(self.first_rows[group]), self.stride)
        at = begin + int(self.places[first_place + place])
        if self.stride == 1:
            return at, begin + int(self.places[first_place + place + 1])
        for _ in range(hops):
            at = self._behind(at)
        return at, self._behind(at)

    def _behind(self, at: int) -> int:
        return at + LENGTH.size + int(LENGTH.unpack_from(self._data, at)[0])

    def learn(self, group: int) -> None:
        """See that the places of a group are known."""
        if not self.known[group]:  # two threads may both find them: they write the same
            first, last = (int(place) for place in self.first_places[group : group + 2])
            self.places[first:last] = self._find(self._stretches[group], self.stride)
            self.known[group] = True


def scan(data: mmap.mmap, stretch: Stretch, stride: int = 1) -> Places:
    """Find the places of a stretch by walking from length prefix to length prefix.

    Raises:
        ValueError: it does not hold the rows that the header says.
    """
    places = np.zeros(-(-stretch.rows // stride) + 1, dtype=np.uint32)
    walk = boundaries if native is None else native.boundaries
    if not walk(data, stretch.begin, stretch.end, stretch.rows, stride, places):
        text = f"bytes {stretch.begin} to {stretch.end} should hold {stretch.rows} records"
        raise ValueError(f"{text}, but the lengths in them do not add up")
    return places


def boundaries(data: mmap.mmap | bytes, begin: int, end: int, rows: int, stride: int, places: Places) -> bool:
    """Write where every ``stride``-th record of a stretch begins, less ``begin``, and where the last one ends.

    Whether ``rows`` records fill the stretch.
    """
    position = begin
    for row in range(rows):
        if position + LENGTH.size > end:
            return False
        if row % stride == 0:
            places[row // stride] = position - begin
        position += LENGTH.size + LENGTH.unpack_from(data, position)[0]
    places[-1] = end - begin
    return position == end
