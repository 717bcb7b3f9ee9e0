"""What became of the records, in numbers and in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from runformer.data.prepare.encode import Counts
from runformer.data.prepare.options import PrepareOptions
from runformer.data.prepare.rows import RowCounts


@dataclass(frozen=True, slots=True)
class Report:
    """The end of a run.

    Attributes:
        counts: of the records and samples.
        rows: of what was written.
        files: what was written.
        columns: of the MindRecord file; none where Megatron's files were made.
        pad_token_id: what shorter rows are filled with.
        bad_file: where bad records are listed, if there were any.
    """

    counts: Counts
    rows: RowCounts
    files: tuple[Path, ...]
    columns: tuple[str, ...]
    pad_token_id: int | None
    bad_file: Path | None

    def as_json(self) -> dict[str, Any]:
        """For ``from_json``."""
        return {
            **{"counts": asdict(self.counts), "rows": asdict(self.rows), "pad_token_id": self.pad_token_id},
            **{"files": list(map(str, self.files)), "columns": list(self.columns)},
            "bad_file": None if self.bad_file is None else str(self.bad_file),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What ``as_json`` gave."""
        return cls(
            Counts(**value["counts"]),
            RowCounts(**value["rows"]),
            tuple(map(Path, value["files"])),
            tuple(value["columns"]),
            value["pad_token_id"],
            None if value["bad_file"] is None else Path(value["bad_file"]),
        )

    def lines(self, options: PrepareOptions) -> Iterator[str]:
        """The report for a person."""
        counts, rows = self.counts, self.rows
        files = " and ".join(map(str, self.files)) if len(self.files) <= 2 else f"{self.files[0]} … {self.files[-1]}"
        if options.to == "megatron":
            yield f"wrote {rows.documents} documents with {rows.tokens} tokens to {files}"
        else:
            what = "rows" if options.pack or counts.samples != rows.rows else "records"
            columns = ", ".join(self.columns)
            yield f"wrote {rows.rows} {what} of {options.sequence_length} + 1 tokens to {files}: {columns}"
            yield from self._about_rows(options)
        yield from self._about_records()

    def _about_rows(self, options: PrepareOptions) -> Iterator[str]:
        counts, rows = self.counts, self.rows
        if "actual_seq_len" in self.columns:
            share = rows.tokens / max(1, rows.tokens + rows.padding)
            one_each = rows.tokens / max(1, rows.documents * options.row_length)
            yield (
                f"packed {rows.documents} samples: {share:.1%} of the tokens are real "
                f"(one sample a row: {one_each:.1%})"
            )
        if len(self.columns) == 1:
            yield f"{rows.documents} documents with {counts.tokens} tokens, joined by the end token"
            if rows.tail:
                yield f"left out at the end, too few for a row: {rows.tail} tokens"
            if rows.padding:
                yield f"the last row is padded with {rows.padding} tokens {self.pad_token_id}"
        else:
            yield f"the longest has {counts.longest} tokens; shorter ones are padded with token {self.pad_token_id}"
            yield f"learnt are {counts.learnt} of {counts.tokens} tokens"

    def _about_records(self) -> Iterator[str]:
        counts = self.counts
        for number, text in (
            (counts.cut, "longer records, cut to this length"),
            (counts.split, "longer records, split into several"),
            (counts.dropped, "longer records, left out"),
            (counts.left_out, "records left out, since their prompt leaves no room for the answer"),
            (counts.empty, "records left out, since there is nothing in them to learn"),
        ):
            if number:
                yield f"{text}: {number}"
        if counts.bad:
            yield f"bad records, left out and listed in {self.bad_file}: {counts.bad}"
