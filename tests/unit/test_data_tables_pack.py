"""Packing: every document once and whole, or cut; borders, labels and padding where they belong; lengths found once."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from byte_tokenizer import write_byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import encode, json_lines, of_files, opened, pack, with_handlers

from runformer.config.data_sources import PackOptions, TableFiles
from runformer.config.task import DataOptions
from runformer.data.dataset import TokenDataset
from runformer.data.records import Records
from runformer.data.tables import lengths as lengths_module
from runformer.data.tables.encode import EncodedRecords
from runformer.data.tables.lengths import document_lengths
from runformer.data.tables.pack import pack as pack_records
from runformer.data.tables.table import TableRecords
from runformer.errors import DataError

PAD = 0
Documents = list[list[int]]


class Rows(Records):
    """Documents in memory; the labels of odd tokens are masked."""

    name = "here"

    def __init__(self, documents: Documents, labels: bool = True) -> None:
        self.documents = documents
        self._labels = labels

    @property
    def column_names(self) -> Sequence[str]:
        return ["input_ids", "labels"] if self._labels else ["input_ids"]

    def __len__(self) -> int:
        return len(self.documents)

    def describe(self, record: int) -> str:
        return f"document {record}"

    def read_columns(self, record: int, columns: Sequence[str]) -> dict[str, Any]:
        tokens = np.array(self.documents[record], dtype=np.int64)
        values = {"input_ids": tokens, "labels": np.where(tokens % 2, -100, tokens)}
        return {name: values[name] for name in columns}


def numbered(sizes: list[int]) -> Documents:
    """Documents of these sizes, no token twice, none of them padding."""
    ends = np.cumsum([0, *sizes]) + 1
    return [list(range(begin, end)) for begin, end in itertools.pairwise(ends)]


def rows_of(packed: Records) -> list[dict[str, list[int]]]:
    names = ["input_ids", "labels", "actual_seq_len"]
    rows = [packed.read_columns(row, names) for row in range(len(packed))]
    return [{name: values.tolist() for name, values in row.items()} for row in rows]


def pieces_of(row: dict[str, list[int]]) -> list[tuple[list[int], list[int]]]:
    """The documents of a row and their labels; borders and padding are seen to be right."""
    tokens, labels, ends = row["input_ids"], row["labels"], row["actual_seq_len"]
    assert ends == sorted(set(ends))
    assert ends[-1] == len(tokens) == len(labels)
    begins = [0, *ends[:-1]]
    pieces = [(tokens[begin:end], labels[begin:end]) for begin, end in zip(begins, ends, strict=True)]
    if PAD in tokens:
        padding = pieces.pop()
        assert set(padding[0]) == {PAD}
        assert set(padding[1]) == {-100}
    assert PAD not in [token for piece, _ in pieces for token in piece]
    return pieces


sizes = st.lists(st.integers(0, 30), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(sizes, st.integers(2, 25))
def test_packed_rows_hold_every_document_once_and_whole(sizes: list[int], length: int) -> None:
    documents = numbered(sizes)
    fitting = [document for document in documents if 1 <= len(document) <= length]
    if not fitting:
        with pytest.raises(DataError, match=f"none of {len(sizes)} records has 1 to {length} tokens"):
            pack_records(Rows(documents), PackOptions(length), PAD)
        return
    rows = rows_of(pack_records(Rows(documents), PackOptions(length), PAD))
    assert all(len(row["input_ids"]) == length for row in rows)
    pieces = [piece for row in rows for piece in pieces_of(row)]
    assert sorted(tokens for tokens, _ in pieces) == sorted(fitting)
    for tokens, labels in pieces:
        assert labels[0] == -100
        assert labels[1:] == [-100 if token % 2 else token for token in tokens[1:]]
    used = sum(map(len, fitting))
    assert sum(len(row["input_ids"]) for row in rows) - used < length * max(1, len(rows) // 2 + 1)


@settings(max_examples=150, deadline=None)
@given(sizes, st.integers(2, 25), st.booleans())
def test_truncated_rows_hold_every_token_once_in_order(sizes: list[int], length: int, labels: bool) -> None:
    documents = numbered(sizes)
    stream = [token for document in documents for token in document]
    if not stream:
        with pytest.raises(DataError, match="here holds no tokens"):
            pack_records(Rows(documents), PackOptions(length, "truncate"), PAD)
        return
    packed = pack_records(Rows(documents, labels), PackOptions(length, "truncate"), PAD)
    rows = rows_of(packed)
    assert len(rows) == -(-len(stream) // length)
    assert [token for row in rows for token in row["input_ids"] if token != PAD] == stream
    firsts = {document[0] for document in documents if document}
    owner = {token: number for number, document in enumerate(documents) for token in document}
    for row in rows:
        for tokens, found in pieces_of(row):
            assert len({owner[token] for token in tokens}) == 1
            masked = [token in firsts or (labels and token % 2) for token in tokens]
            assert found == [-100 if mask else token for mask, token in zip(masked, tokens, strict=True)]
    assert (
        rows_of(packed)[-1]
        == rows[-1]
        == rows_of(pack_records(Rows(documents, labels), PackOptions(length, "truncate"), PAD))[-1]
    )


def test_a_row_by_hand() -> None:
    packed = pack_records(Rows([[2, 4, 6], [8, 10, 12, 14], [16, 18]]), PackOptions(6), 99)
    assert rows_of(packed) == [
        {"input_ids": [2, 4, 6, 99, 99, 99], "labels": [-100, 4, 6, -100, -100, -100], "actual_seq_len": [3, 6]},
        {"input_ids": [8, 10, 12, 14, 16, 18], "labels": [-100, 10, 12, 14, -100, 18], "actual_seq_len": [4, 6]},
    ]
    assert packed.describe(1) == "packed row 1 (document 1 and 1 more)"
    assert packed.describe(0) == "packed row 0 (document 0)"


def test_documents_that_are_left_out_are_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        packed = pack_records(Rows(numbered([3, 9, 0, 2, 8])), PackOptions(5), PAD)
        rows_of(packed)
    assert [record.getMessage() for record in caplog.records] == [
        "here: 2 of 5 records have more than 5 tokens and are left out",
        "here: 1 of 5 records have no tokens and are left out",
    ]


def test_a_document_that_has_changed_meanwhile() -> None:
    rows = Rows(numbered([4, 3]))
    packed = pack_records(rows, PackOptions(8), PAD)
    rows.documents[1] = [9]
    with pytest.raises(DataError, match="document 1 has 1 tokens, and had more when rows were packed"):
        packed.read_columns(0, ["input_ids"])


@pytest.mark.usefixtures("table_cache")
def test_labels_that_do_not_fit_their_tokens(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "x.jsonl", [{"input_ids": [1, 2, 3], "labels": [1, 2]}])
    with pytest.raises(DataError, match=r"x\.jsonl, row 0 has 3 tokens, and 2 labels"):
        opened(with_handlers(of_files("json", path), pack(4))).read_columns(0, ["labels"])


@pytest.mark.usefixtures("table_cache")
@pytest.mark.parametrize("strategy", ["pack", "truncate"])
def test_a_batch_of_packed_rows_learns_nothing_across_borders(tmp_path: Path, strategy: str) -> None:
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}, {"input_ids": [10, 11, 12, 13]}]
    source = with_handlers(of_files("json", json_lines(tmp_path / "x.jsonl", rows)), PackOptions(5, strategy))
    columns = ("input_ids", "labels", "actual_seq_len")
    dataset = TokenDataset(DataOptions(source, columns, None, 0, pad_token_id=0), 4, 20)
    batch = dataset.rows(range(len(dataset)))
    assert batch.inputs_BL.tolist() == [[5, 6, 7, 8], [10, 11, 12, 13]]
    assert batch.labels_BL.tolist() == [[6, 7, -100, 9], [11, 12, 13, -100]]
    assert batch.positions_BL is not None
    assert batch.positions_BL.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=7), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_lengths_of_lists_are_read_from_their_borders(documents: Documents, random: Any) -> None:
    table = datasets.Dataset.from_dict({"input_ids": documents}, features=FEATURES)
    assert document_lengths(TableRecords(table, "x")).tolist() == [len(document) for document in documents]
    picked = random.choices(range(len(documents)), k=len(documents))
    expected = [len(documents[number]) for number in picked]
    assert document_lengths(TableRecords(table.select(picked), "x")).tolist() == expected


FEATURES = datasets.Features({"input_ids": datasets.Sequence(datasets.Value("int32"))})


def test_lengths_of_texts_are_found_once(tmp_path: Path, table_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths_module, "_WORTH_KEEPING", 2)
    counted: list[int] = []
    real = EncodedRecords.lengths
    monkeypatch.setattr(EncodedRecords, "lengths", lambda records: counted.append(1) or real(records))
    tokenizer = write_byte_tokenizer(tmp_path / "tokenizer")
    path = json_lines(tmp_path / "x.jsonl", [{"text": "a" * number} for number in range(9)])

    def packed(source: TableFiles, length: int = 8) -> list[dict[str, list[int]]]:
        return rows_of(opened(with_handlers(source, encode("text", tokenizer, length), pack(length))))

    first = packed(of_files("json", path))
    assert packed(of_files("json", path)) == first
    assert len(counted) == 1
    (kept,) = (table_cache / "runformer").glob("*.npy")
    packed(of_files("json", path), 7)  # other options
    json_lines(path, [{"text": "b" * number} for number in range(8)])
    assert packed(of_files("json", path)) != first  # other data
    write_byte_tokenizer(tmp_path / "tokenizer", pad=None)  # another tokenizer
    packed(of_files("json", path))
    assert len(counted) == 4
    kept.write_bytes(kept.read_bytes()[:-8])
    json_lines(path, [{"text": "a" * number} for number in range(9)])
    write_byte_tokenizer(tmp_path / "tokenizer")
    assert packed(of_files("json", path)) == first
    assert not list((table_cache / "runformer").glob("*.*.npy"))


def test_a_long_wait_is_announced(
    tmp_path: Path, table_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lengths_module, "_WORTH_KEEPING", 2)
    monkeypatch.setattr(lengths_module, "_WORTH_A_WORD", 2)
    tokenizer = write_byte_tokenizer(tmp_path / "tokenizer")
    source = with_handlers(
        of_files("json", json_lines(tmp_path / "x.jsonl", [{"text": "abc"}, {"text": "d"}])),
        encode("text", tokenizer),
        pack(6),
    )
    with caplog.at_level(logging.INFO, logger="runformer"):
        opened(source)
        opened(source)
    assert len([record for record in caplog.records if "are encoded once" in record.getMessage()]) == 1
    assert list((table_cache / "runformer").glob("*.npy"))


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, table_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lengths_module, "_WORTH_KEEPING", 2)
    tokenizer = write_byte_tokenizer(tmp_path / "tokenizer")
    path = json_lines(tmp_path / "x.jsonl", [{"text": "abc"}, {"text": "d"}])
    table_cache.mkdir()
    (table_cache / "runformer").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        records = opened(with_handlers(of_files("json", path), encode("text", tokenizer), pack(6)))
    assert rows_of(records)[0]["actual_seq_len"] == [4, 6]
    assert "is not kept for the next run" in caplog.text
