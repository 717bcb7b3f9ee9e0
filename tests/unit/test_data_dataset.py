"""Rows as batches: which positions count, which keys are masked, and what is wrong with a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runformer.config.task import DataOptions, MindRecordFiles
from runformer.data.batch import TokenBatch
from runformer.data.dataset import TokenDataset
from runformer.data.mindrecord import Column, MindRecordWriter
from runformer.errors import ConfigError, DataError

ROWS = Column("int32", (-1,))


def write(path: Path, *records: dict[str, list[int]], **types: Column) -> Path:
    schema = {name: types.get(name, ROWS) for name in records[0]} if records else {"input_ids": ROWS}
    with MindRecordWriter(path, schema, header_size=16 << 10, page_size=32 << 10) as writer:
        writer.write([{name: np.array(row, schema[name].dtype) for name, row in record.items()} for record in records])
    return path


def options(*paths: Path, columns: tuple[str, ...] = ("input_ids",), **changes: Any) -> DataOptions:
    return DataOptions(MindRecordFiles(paths), columns, shuffle=None, seed=0, **{"pad_token_id": 0, **changes})


def open_dataset(path: Path, *columns: str, **changes: Any) -> TokenDataset:
    return TokenDataset(options(path, columns=columns, **changes), None, 100)


def test_tokens_alone_are_their_own_labels(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path / "x", {"input_ids": [5, 6, 0, 7, 0, 0]}), "input_ids")
    batch = dataset.rows([0])
    assert dataset.sequence_length == 5
    assert batch.inputs_BL.tolist() == [[5, 6, 0, 7, 0]]
    # A label that is padding counts (after 6 and 7); a position whose input is padding does not.
    assert batch.labels_BL.tolist() == [[6, 0, -100, 0, -100]]
    assert batch.keep_BL.tolist() == [[True, True, False, True, False]]
    assert (batch.inputs_BL.dtype, batch.labels_BL.dtype) == (torch.int64, torch.int64)


def test_a_second_column_holds_labels_and_a_third_changes_nothing(tmp_path: Path) -> None:
    record = {"input_ids": [5, 6, 0, 7, 8], "labels": [-100, -100, 9, 9, 0], "mask": [0, 0, 0, 0, 0]}
    path = write(tmp_path / "x", record)
    expected = [[-100, 9, -100, 0]]
    assert open_dataset(path, "input_ids", "labels").rows([0]).labels_BL.tolist() == expected
    assert open_dataset(path, "input_ids", "labels", "mask").rows([0]).labels_BL.tolist() == expected
    path = write(tmp_path / "y", {"input_ids": [5, 6, 7, 8], "labels": [1, 0, 9, 2]})
    batch = open_dataset(path, "input_ids", "labels", ignore_token_id=0).rows([0])
    assert batch.labels_BL.tolist() == [[-100, 9, 2]]


def test_rows_already_shifted_are_taken_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"input_ids": [5, 6, 7], "labels": [6, 7, 0]})
    batch = open_dataset(path, "input_ids", "labels", already_shifted=True).rows([0])
    assert batch.inputs_BL.tolist() == [[5, 6, 7]]
    assert batch.labels_BL.tolist() == [[6, 7, 0]]
    with pytest.raises(ConfigError, match="already shifted"):
        open_dataset(path, "input_ids", already_shifted=True)


def test_without_padding_token_every_position_counts(tmp_path: Path) -> None:
    batch = open_dataset(write(tmp_path / "x", {"input_ids": [0, 0, 3]}), "input_ids", pad_token_id=None).rows([0])
    assert batch.labels_BL.tolist() == [[0, 3]]
    assert bool(batch.keep_BL.all())
    assert not batch.needs_key_mask


@pytest.mark.parametrize(
    ("name", "columns"),
    [("llama_pretrain", ("input_ids",)), ("qwen2_finetune_mask", ("input_ids", "target_ids", "attention_mask"))],
)
def test_rows_of_the_original_task(oracle_dir: Path, name: str, columns: tuple[str, ...]) -> None:
    rows = [json.loads(line) for line in (oracle_dir / name / "data.jsonl").read_text().splitlines()]
    dataset = TokenDataset(options(oracle_dir / name / "data.mindrecord", columns=columns), 48, 512)
    batch = dataset.rows(range(len(dataset)))
    assert len(batch) == len(rows) == 64
    for number, row in enumerate(rows):
        tokens, labels = row["input_ids"], row[columns[min(1, len(columns) - 1)]]
        counted = [token != 0 and label != -100 for token, label in zip(tokens[:-1], labels[1:], strict=True)]
        assert batch.inputs_BL[number].tolist() == tokens[:-1]
        assert [label != -100 for label in batch.labels_BL[number].tolist()] == counted
        assert batch.labels_BL[number][torch.tensor(counted)].tolist() == [
            label for label, counts in zip(labels[1:], counted, strict=True) if counts
        ]


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_the_key_mask_is_needed_exactly_where_it_changes_a_counted_position(rows: list[list[bool]]) -> None:
    keep_BL = torch.tensor(rows)
    tokens_BL = torch.ones(keep_BL.shape, dtype=torch.int64)
    causal_LL = torch.ones(6, 6, dtype=torch.bool).tril()
    hidden_keys = causal_LL & ~keep_BL[:, None, :] & keep_BL[:, :, None]  # a real query, a padding key
    assert TokenBatch.of(tokens_BL, tokens_BL, keep_BL).needs_key_mask == bool(hidden_keys.any())


def test_a_batch_splits_into_micro_batches_that_know_their_own_padding() -> None:
    inputs_BL = torch.tensor([[1, 2, 3], [1, 0, 3], [1, 2, 0]])
    parts = TokenBatch.of(inputs_BL, inputs_BL + 1, inputs_BL != 0).split(2)
    assert [len(part) for part in parts] == [2, 1]
    assert [part.needs_key_mask for part in parts] == [True, False]
    assert torch.cat([part.labels_BL for part in parts]).tolist() == (inputs_BL + 1).tolist()
    assert parts[1].to(torch.device("cpu")).inputs_BL.tolist() == [[1, 2, 0]]


def test_samples_come_in_the_order_asked_for(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path / "x", *({"input_ids": [n, 1]} for n in range(5))), "input_ids")
    assert dataset.rows(np.array([3, 0, 3])).inputs_BL.tolist() == [[3], [0], [3]]
    assert len(dataset) == 5
    assert len(open_dataset(tmp_path / "x", "input_ids", num_samples=2)) == 2
    assert len(open_dataset(tmp_path / "x", "input_ids", num_samples=9)) == 5


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "a.mindrecord1", {"input_ids": [1, 1]})
    write(tmp_path / "b.mindrecord", {"input_ids": [2, 1]})
    (tmp_path / "notes.txt").write_text("no data")
    dataset = open_dataset(tmp_path, "input_ids")
    assert dataset.rows([0, 1]).inputs_BL.tolist() == [[2], [1]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file whose name ends in 'mindrecord'"):
        open_dataset(tmp_path / "empty", "input_ids")


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"input_ids": [1, 2], "labels": [1, 2]})
    with pytest.raises(DataError, match="has no column 'label'; it has input_ids, labels") as caught:
        open_dataset(path, "input_ids", "label")
    assert "did you mean 'labels'" in str(caught.value)


def test_a_column_that_holds_no_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"input_ids": [1, 2]}, input_ids=Column("float32", (-1,)))
    with pytest.raises(DataError, match="does not hold rows of int32 or int64"):
        open_dataset(path, "input_ids")


@pytest.mark.parametrize("token", [100, -1, 2**31 - 1])
@pytest.mark.parametrize("place", [0, 2])
def test_an_id_outside_the_vocabulary_is_placed(tmp_path: Path, token: int, place: int) -> None:
    row = [1, 2, 3]
    row[place] = token
    dataset = open_dataset(write(tmp_path / "x", {"input_ids": [1, 1, 1]}, {"input_ids": row}), "input_ids")
    with pytest.raises(DataError) as caught:
        dataset.rows([0, 1])
    assert f"record 1 of {tmp_path / 'x'}: 'input_ids', position {place}, holds token id {token}" in str(caught.value)
    assert "vocabulary has ids 0 to 99" in str(caught.value)


def test_a_label_outside_the_vocabulary_is_placed_where_it_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"input_ids": [1, 2, 0, 1], "labels": [500, -100, 3, 500]})
    assert open_dataset(path, "input_ids", "labels").rows([0]).labels_BL.tolist() == [[-100, 3, -100]]
    path = write(tmp_path / "y", {"input_ids": [1, 2, 3, 1], "labels": [0, -100, 3, 500]})
    with pytest.raises(DataError, match="'labels', position 3, holds token id 500"):
        open_dataset(path, "input_ids", "labels").rows([0])


def test_a_row_of_another_length_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"input_ids": [1, 2, 3]}, {"input_ids": [1, 2, 3, 4]})
    with pytest.raises(DataError) as caught:
        TokenDataset(options(path), 2, 100).rows([0, 1])
    assert "record 1" in str(caught.value)
    assert "has 4 tokens, not 3 (model.model_config.seq_length 2 + 1)" in str(caught.value)
    assert "seq_length to 3" in str(caught.value)


def test_an_empty_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no records"):
        open_dataset(write(tmp_path / "x"), "input_ids")


def test_a_row_too_short_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too short to learn from: 1 tokens"):
        open_dataset(write(tmp_path / "x", {"input_ids": [1]}), "input_ids")
