"""Filling the pages of one data file, as MindSpore's writer fills them: its files and ours are equal byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from runformer.data.mindrecord.header import BLOB, LENGTH, RAW, Page


class PagedFile:
    """The pages of a data file under way.

    A row group is one blob page and the run of raw records of the same rows. A new group starts where the blob
    page or the group's raw records would outgrow ``page_size``; a raw page holds as many groups as fit.

    Raises:
        OSError: the file exists or cannot be written.
    """

    def __init__(self, path: Path, header_size: int, page_size: int) -> None:
        self.pages: list[Page] = []
        self._header_size = header_size
        self._page_size = page_size
        self._blob: Page | None = None
        self._raw: Page | None = None
        self._groups = 0
        self._file = path.open("x+b")

    def append(self, blobs: Sequence[bytes], raws: Sequence[bytes]) -> None:
        """Add records, given by their blob and raw parts without length prefixes.

        The new blob pages of one call come before its new raw pages, as MindSpore numbers them.
        """
        blobs, raws = [_prefixed(part) for part in blobs], [_prefixed(part) for part in raws]
        open_group, *new_groups = (slice(*bounds) for bounds in pairwise(self._cuts(blobs, raws)))
        if self._blob is not None:
            self._extend_blob_page(self._blob, blobs[open_group])
        for group in new_groups:
            self._blob = self._new_blob_page()
            self._extend_blob_page(self._blob, blobs[group])
        if self._raw is not None:
            self._extend_open_group(self._raw, b"".join(raws[open_group]))
        for group in new_groups:
            self._start_group(b"".join(raws[group]))

    def finish(self, header: bytes) -> None:
        """Put the header in its place and close the file."""
        self._write(0, header)
        self._file.close()

    def close(self) -> None:
        """Give the file up, if it is not finished."""
        with suppress(OSError):  # what the buffer still holds may not fit on the disk
            self._file.close()

    def _cuts(self, blobs: Sequence[bytes], raws: Sequence[bytes]) -> list[int]:
        """Where groups begin among the new records: 0 to the next cut still belongs to the open group."""
        cuts = [0]
        blob_used = self._blob.used if self._blob is not None else self._page_size
        group_used = self._raw.used - self._raw.row_groups[-1][1] if self._raw is not None else self._page_size
        for number, (blob, raw) in enumerate(zip(blobs, raws, strict=True)):
            blob_used, group_used = blob_used + len(blob), group_used + len(raw)
            if max(blob_used, group_used) > self._page_size:
                cuts.append(number)
                blob_used, group_used = len(blob), len(raw)
        return [*cuts, len(blobs)]

    def _new_blob_page(self) -> Page:
        row = self._blob.end_row if self._blob is not None else 0
        number = self._blob.page_type_id + 1 if self._blob is not None else 0
        page = Page(len(self.pages), BLOB, number, start_row=row, end_row=row)
        self.pages.append(page)
        return page

    def _new_raw_page(self) -> Page:
        # This number of its own kind is odd (and used by nobody), but it is what MindSpore writes.
        number = self._raw.page_id + 1 if self._raw is not None else 0
        page = Page(len(self.pages), RAW, number)
        self.pages.append(page)
        return page

    def _extend_blob_page(self, page: Page, records: Sequence[bytes]) -> None:
        self._extend(page, b"".join(records))
        page.end_row += len(records)

    def _extend_open_group(self, page: Page, records: bytes) -> None:
        if page.used + len(records) > self._page_size:
            page = self._raw = self._move_open_group(page)
        self._extend(page, records)

    def _move_open_group(self, page: Page) -> Page:
        """Copy the open group to a page of its own; its old bytes stay behind, outside ``used``."""
        group, offset = page.row_groups.pop()
        self._file.seek(self._begin(page) + offset)
        records = self._file.read(page.used - offset)
        page.used = offset
        new_page = self._new_raw_page()
        new_page.row_groups.append((group, 0))
        self._extend(new_page, records)
        return new_page

    def _start_group(self, records: bytes) -> None:
        if self._raw is None or self._raw.used + len(records) > self._page_size:
            self._raw = self._new_raw_page()
        self._raw.row_groups.append((self._groups, self._raw.used))
        self._groups += 1
        self._extend(self._raw, records)

    def _extend(self, page: Page, data: bytes) -> None:
        self._write(self._begin(page) + page.used, data)
        page.used += len(data)

    def _begin(self, page: Page) -> int:
        return self._header_size + page.page_id * self._page_size

    def _write(self, position: int, data: bytes) -> None:
        self._file.seek(position)
        self._file.write(data)


def _prefixed(part: bytes) -> bytes:
    return LENGTH.pack(len(part)) + part
