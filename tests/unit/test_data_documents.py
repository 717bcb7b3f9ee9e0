"""Rows of several documents: where these begin, what the model sees of them, and that packing changes no loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from runformer.config.task import DataOptions, DocumentOptions, MindRecordFiles, ModelOptions, PaddingOptions, Precision
from runformer.data import IGNORED
from runformer.data.batch import TokenBatch
from runformer.data.dataset import TokenDataset
from runformer.data.documents import ends_at, ends_of, places_in
from runformer.data.mindrecord import Column, MindRecordWriter
from runformer.data.packing import best_fit
from runformer.errors import ConfigError, DataError
from runformer.models import blocks
from runformer.models.blocks import attend_in_blocks, block_mask
from runformer.models.build import build_model, initialise
from runformer.models.decoder import CausalLM
from runformer.parallel.inputs import attention_mask

VOCABULARY = 50
OPTIONS = ModelOptions(VOCABULARY, 32, 48, 2, 4, 2, 8, 64, initializer_range=0.2)
ROWS = Column("int32", (-1,))
SMALL: dict[str, Any] = {"header_size": 16 << 10, "page_size": 32 << 10}


def write(path: Path, *records: dict[str, list[int]]) -> Path:
    with MindRecordWriter(path, dict.fromkeys(records[0], ROWS), **SMALL) as writer:
        writer.write([{name: np.array(row, "int32") for name, row in record.items()} for record in records])
    return path


def open_dataset(path: Path, *columns: str, length: int | None = None, **changes: Any) -> TokenDataset:
    options = DataOptions(MindRecordFiles((path,)), columns, None, 0, **{"pad_token_id": 0, **changes})
    return TokenDataset(options, length, VOCABULARY)


def lists(batch: TokenBatch) -> tuple[Any, Any]:
    assert batch.documents_BL is not None
    assert batch.positions_BL is not None
    return batch.documents_BL.tolist(), batch.positions_BL.tolist()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 1))
def test_documents_are_numbered_and_positions_count_from_0_in_each(sizes: list[int], extra: int) -> None:
    tokens = sum(sizes)
    length = tokens - extra
    if length == 0:
        return
    numbers, positions = places_in(ends_of(np.cumsum(sizes), length, tokens)[None])
    assert numbers[0].tolist() == [number for number, size in enumerate(sizes) for _ in range(size)][:length]
    assert positions[0].tolist() == [place for size in sizes for place in range(size)][:length]


def test_what_comes_behind_the_last_end_is_a_document_of_its_own() -> None:
    numbers, positions = places_in(ends_of(np.array([2]), 5, 6)[None])
    assert (numbers.tolist(), positions.tolist()) == ([[0, 0, 1, 1, 1]], [[0, 1, 0, 1, 2]])


def test_an_end_token_belongs_to_its_document() -> None:
    numbers, positions = places_in(ends_at(np.array([[5, 9, 9, 6, 9]]), 9))
    assert (numbers.tolist(), positions.tolist()) == ([[0, 0, 1, 2, 2]], [[0, 1, 0, 0, 1]])


def test_a_column_says_where_documents_end_and_labels_never_cross(tmp_path: Path) -> None:
    tokens = [5, 6, 7, 8, 9, 10]
    path = write(tmp_path / "x", {"input_ids": tokens, "labels": tokens, "actual_seq_len": [2, 5, 6]})
    batch = open_dataset(path, "input_ids", "labels", "actual_seq_len").rows([0])
    assert lists(batch) == ([[0, 0, 1, 1, 1]], [[0, 1, 0, 1, 2]])
    assert batch.labels_BL.tolist() == [[6, IGNORED, 8, 9, IGNORED]]
    shifted = {"input_ids": tokens, "labels": [6, 7, 8, 9, 10, 11], "actual_seq_len": [2, 6]}
    path = write(tmp_path / "y", shifted)
    batch = open_dataset(path, "input_ids", "labels", "actual_seq_len", already_shifted=True).rows([0])
    assert batch.labels_BL.tolist() == [[6, IGNORED, 8, 9, 10, 11]]  # the last one's document goes on behind the row


@pytest.mark.parametrize(
    ("ends", "says"),
    [([3, 2], "does not grow"), ([0, 2], "does not grow"), ([2, 9], "ends at 9, but the row has 4"), ([-1], "grow")],
)
def test_ends_that_cannot_be(tmp_path: Path, ends: list[int], says: str) -> None:
    path = write(tmp_path / "x", {"input_ids": [5, 6, 7, 8], "actual_seq_len": ends})
    with pytest.raises(DataError, match=f"record 0 of .*'actual_seq_len' .*{says}"):
        open_dataset(path, "input_ids", "actual_seq_len").rows([0])


def test_end_tokens_start_attention_and_positions_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"input_ids": [5, 9, 7, 8, 9, 3]})
    batch = open_dataset(path, "input_ids", documents=DocumentOptions(9)).rows([0])
    assert lists(batch) == ([[0, 0, 1, 1, 1]], [[0, 1, 0, 1, 2]])
    assert batch.labels_BL.tolist() == [[9, 7, 8, 9, 3]]
    batch = open_dataset(path, "input_ids", documents=DocumentOptions(9, False, True, False)).rows([0])
    assert batch.documents_BL is None
    assert batch.labels_BL.tolist() == [[9, IGNORED, 8, 9, IGNORED]]
    batch = open_dataset(path, "input_ids", documents=DocumentOptions(9, positions=False)).rows([0])
    assert batch.positions_BL is None


@pytest.mark.parametrize(
    ("padding", "samples", "length"),
    [(PaddingOptions(), [0, 1], 4), (PaddingOptions(4, 1), [0, 1], 4), (PaddingOptions(4, 1), [0, 2], 8),
     (PaddingOptions(100, 1), [0], 9), (PaddingOptions(3), [1], 5)],
)  # fmt: skip
def test_rows_are_padded_to_the_longest_of_their_batch(
    tmp_path: Path, padding: PaddingOptions, samples: list[int], length: int
) -> None:
    rows = [[5, 6, 7], [5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 10]]
    path = write(tmp_path / "x", *({"input_ids": row, "labels": row} for row in rows))
    for columns in (("input_ids",), ("input_ids", "labels")):
        batch = open_dataset(path, *columns, length=9, padding=padding).rows(samples)
        assert batch.inputs_BL.shape == (len(samples), length)
        for row, sample in enumerate(samples):
            tokens = rows[sample]
            assert batch.labels_BL[row].tolist() == tokens[1:] + [IGNORED] * (length - len(tokens) + 1)
            assert batch.inputs_BL[row, : len(tokens)].tolist() == tokens[:length]


def test_rows_that_padding_cannot_help(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"input_ids": [5] * 12, "labels": [5] * 12}, {"input_ids": [5, 6], "labels": [5] * 3})
    dataset = open_dataset(path, "input_ids", "labels", length=9, padding=PaddingOptions())
    with pytest.raises(DataError, match=r"record 0 .*'input_ids' has 12 tokens, not 2 to 10"):
        dataset.rows([0])
    with pytest.raises(DataError, match=r"record 1 .*'labels' has 3 tokens, but 'input_ids' has 2"):
        dataset.rows([1])
    with pytest.raises(ConfigError, match="how long a row may be is not known"):
        open_dataset(path, "input_ids", padding=PaddingOptions())


def losses(model: CausalLM, batch: TokenBatch) -> torch.Tensor:
    """The loss of each position, (B, L), 0 where none counts."""
    hidden = model(batch.inputs_BL, positions=batch.positions_BL, mask=attention_mask(batch))
    logits = model.logits(hidden)
    return F.cross_entropy(logits.flatten(0, 1), batch.labels_BL.flatten(), ignore_index=IGNORED, reduction="none")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(2, 24), min_size=1, max_size=12), st.integers(0, 1000))
def test_a_packed_row_has_the_losses_of_its_samples(sizes: list[int], seed: int) -> None:
    """In float32, token for token: attention and positions start anew in each document."""
    capacity, generator = 25, np.random.default_rng(seed)
    documents = [generator.integers(1, VOCABULARY, size) for size in sizes]
    model = build_model(OPTIONS, Precision(), torch.device("cpu"))
    initialise(model, seed)
    with torch.no_grad():
        apart = [losses(model, whole(tokens)) for tokens in documents]
        for row in best_fit(sizes, capacity):
            packed = losses(model, pack([documents[number] for number in row], capacity))
            expected = torch.cat([torch.cat([apart[number], torch.zeros(1)]) for number in row])
            torch.testing.assert_close(packed[: len(expected)], expected[: capacity - 1], rtol=1e-6, atol=1e-6)
            begin = 0
            for number in row:
                end = begin + len(apart[number])
                assert packed[begin:end].mean().item() == pytest.approx(apart[number].mean().item(), rel=1e-6)
                begin = end + 1


def whole(tokens: np.ndarray[Any, Any]) -> TokenBatch:
    row = torch.from_numpy(tokens)[None]
    return TokenBatch.of(row[:, :-1], row[:, 1:], torch.ones_like(row[:, 1:], dtype=torch.bool))


def pack(documents: list[np.ndarray[Any, Any]], capacity: int) -> TokenBatch:
    """A row as the packing of a dataset makes it: padding at the end, as a document of its own."""
    tokens, labels = np.zeros(capacity, "int64"), np.full(capacity, IGNORED)
    place = 0
    for document in documents:
        tokens[place : place + len(document)] = document
        labels[place + 1 : place + len(document)] = document[1:]
        place += len(document)
    ends = np.cumsum([len(document) for document in documents])
    numbers, positions = places_in(ends_of(ends, capacity - 1, capacity)[None])
    inputs = torch.from_numpy(tokens)[None, :-1]
    label_row = torch.from_numpy(labels)[None, 1:]
    return TokenBatch.of(inputs, label_row, inputs != 0, torch.from_numpy(numbers), torch.from_numpy(positions))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("begin", [0, 7])
@pytest.mark.parametrize("seed", range(4))
def test_blocks_attend_as_the_mask_does(monkeypatch: pytest.MonkeyPatch, seed: int, begin: int) -> None:
    """What accelerators compute, not compiled; for the later positions of a row, too."""
    monkeypatch.setattr(blocks, "_flex_attention", lambda: flex_attention)
    generator = torch.Generator().manual_seed(seed)
    rows, length, heads, kv_heads, size = 2, 16, 4, 2, 8
    ends = torch.rand(rows, length, generator=generator) < 0.3
    numbers, positions = (torch.from_numpy(array) for array in places_in(ends.numpy()))
    keep = torch.rand(rows, length, generator=generator) < 0.8
    keep[:, 3:5] = torch.tensor([False, True])  # padding that a real token would see
    tokens = torch.ones(rows, length, dtype=torch.int64)
    batch = TokenBatch.of(tokens, tokens, keep, numbers, positions)
    q = torch.randn(rows, heads, length - begin, size, generator=generator)
    k, v = (torch.randn(rows, kv_heads, length, size, generator=generator) for _ in range(2))
    mask = attention_mask(batch, (begin, length))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    found = attend_in_blocks(q, k, v, block_mask(numbers, keep, (begin, length)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
