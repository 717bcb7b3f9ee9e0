"""Samples of Megatron datasets: cut, shuffled and blended right, whatever has become of their index files."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron_files import files, write_dataset

from runformer.config.task import DataOptions, DocumentOptions
from runformer.data import IGNORED
from runformer.data.dataset import TokenDataset
from runformer.data.megatron import IndexedDataset, IndexedWriter
from runformer.data.megatron.blending import blending_indices, exhaustive_blending_indices
from runformer.data.megatron.cache import IndexCache
from runformer.data.megatron.indices import split_bounds
from runformer.data.megatron.records import MegatronRecords
from runformer.data.megatron.samples import GPTSamples
from runformer.data.native import native
from runformer.data.records import RowLengthError
from runformer.errors import DataError

LENGTHS = [5, 1, 9, 17, 2, 2, 30, 4, 11, 8, 3, 6, 25, 1, 1, 7]
COLUMNS = ("input_ids", "labels")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plain_samples(documents: list[list[int]], length: int, extra: int, count: int) -> list[list[int]]:
    """What samples are, one token after the other."""
    row = [token for document in documents for token in document]
    return [row[first * length : first * length + length + extra] for first in range(count)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=20).filter(any),
    length=st.integers(1, 9),
    samples=st.none() | st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    extra=st.booleans(),
    drop_last=st.booleans(),
    chunk=st.integers(1, 5),
)
def test_samples_are_cut_from_the_row_of_documents(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lengths: list[int],
    length: int,
    samples: int | None,
    seed: int,
    extra: bool,
    drop_last: bool,
    chunk: int,
) -> None:
    monkeypatch.setattr("runformer.data.megatron.indices._CHUNK", chunk)
    prefix = write_dataset(tmp_path / "text", lengths)
    cache = tmp_path / f"cache-{abs(hash((tuple(lengths), chunk, extra, drop_last)))}"
    asked = {"seed": seed, "part": "valid", "extra_token": extra, "drop_last": drop_last, "split": "0, 1"}
    options = files([prefix], size=samples, sequence_length=length, cache=cache, **asked)
    found = GPTSamples(options, 0, samples)
    dataset = IndexedDataset(prefix)
    documents = [dataset[number].tolist() for number in found.document_index]
    epochs = len(documents) // len(lengths)
    assert all(
        sorted(found.document_index[epoch * len(lengths) :][: len(lengths)]) == list(range(len(lengths)))
        for epoch in range(epochs if found.layout.last_epoch_apart and epochs == 2 else epochs == 1)
    )
    expected = plain_samples(documents, length, int(extra), len(found))
    rows = found.read(np.argsort(found.shuffle_index).astype(np.int64)) if len(found) else np.empty((0, 0))
    assert [[token for token in row if token != -1] for row in rows.tolist()] == expected
    full = (epochs * sum(lengths) - extra) / length
    assert len(found) == (int(full) if drop_last else -int(-full // 1))
    assert samples is None or len(found) >= samples


def test_the_last_sample_of_validation_is_padded() -> None:
    write_dataset(Path("text"), [10])
    asked: dict[str, Any] = {"part": "valid", "split": "0, 1", "drop_last": False, "sequence_length": 6}
    records = MegatronRecords(files(["text"], **asked))
    rows = {tuple(row) for row in np.concatenate(records.read_rows([0, 1], COLUMNS, 6), axis=1).tolist()}
    none = IGNORED
    assert rows == {
        (10, 11, 12, 13, 14, 15, 11, 12, 13, 14, 15, 16),
        (16, 17, 18, 19, 0, 0, 17, 18, 19, none, none, none),
    }


def test_tokens_that_are_padding_are_zero_and_do_not_count() -> None:
    write_dataset(Path("text"), [7])
    records = MegatronRecords(files(["text"], sequence_length=6, pad=12))
    assert len(records) == 1
    inputs, labels = records.read_rows([0], COLUMNS, 6)
    assert inputs.tolist() == [[10, 11, 0, 13, 14, 15]]
    assert labels.tolist() == [[11, IGNORED, 13, 14, 15, 16]]
    without = MegatronRecords(files(["text"], sequence_length=7, extra_token=False)).read_columns(0, COLUMNS)
    assert without["labels"].tolist() == [11, 12, 13, 14, 15, 16, IGNORED]


@pytest.mark.parametrize("eod_counts", [True, False])
def test_documents_end_as_in_megatron(eod_counts: bool) -> None:
    """Positions, loss mask and attention mask, worked out token by token."""
    eod = 1
    with IndexedWriter("text") as writer:
        for length in (5, 9, 2, 7, 1, 11):
            writer.add([*range(10, 10 + length), eod])
    source = files(["text"], size=4)
    documents = DocumentOptions(eod, attention=True, positions=True, eod_counts=eod_counts)
    options = DataOptions(source, COLUMNS, None, 0, already_shifted=True, documents=documents)
    batch = TokenDataset(options, 8, 64).rows(range(4))
    assert batch.documents_BL is not None
    assert batch.positions_BL is not None
    assert bool((batch.inputs_BL == eod).any())
    rows = MegatronRecords(source).read_rows(range(4), COLUMNS, 8)
    assert batch.inputs_BL.tolist() == rows[0].tolist()
    for row in range(4):
        begin, begins = 0, []
        for place, token in enumerate(rows[0][row]):
            begins.append(begin)
            begin = place + 1 if token == eod else begin
        assert batch.positions_BL[row].tolist() == [place - first for place, first in enumerate(begins)]
        numbers = batch.documents_BL[row].tolist()
        for place, first in enumerate(begins):
            assert [numbers[key] == numbers[place] for key in range(place + 1)] == [
                key >= first for key in range(place + 1)
            ]
        wanted = [
            IGNORED if token == eod and not eod_counts else label
            for token, label in zip(rows[0][row], rows[1][row], strict=True)
        ]
        assert batch.labels_BL[row].tolist() == wanted


def test_records_tell_what_they_are(tmp_path: Path) -> None:
    write_dataset(Path("text"), LENGTHS)
    records = MegatronRecords(files(["text"]))
    assert records.describe(3) == "text, train sample 3"
    assert tuple(records.column_names) == COLUMNS
    with pytest.raises(RowLengthError) as caught:
        records.read_rows([2], COLUMNS, 9)
    assert (caught.value.record, caught.value.size) == (2, 8)
    write_dataset(tmp_path / "floats", [4], np.float32)
    with pytest.raises(DataError, match=r"floats\.bin holds numbers of type float32, not token ids"):
        MegatronRecords(files(["floats"]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_every_type_of_token_is_read(dtype: Any) -> None:
    write_dataset(Path("text"), [9, 8], dtype)
    inputs = MegatronRecords(files(["text"])).read_rows([0, 1], ("input_ids",), 8)[0]
    assert inputs.dtype == np.int64
    assert sorted(inputs.ravel().tolist()) == list(range(10, 26))


def test_a_part_without_tokens_is_told() -> None:
    write_dataset(Path("text"), LENGTHS)
    with pytest.raises(DataError, match=r"text holds no tokens in the test part of split '969, 30, 1': it has 16 doc"):
        MegatronRecords(files(["text"], split="969, 30, 1", part="test"))
    write_dataset(Path("empty"), [0, 0])
    with pytest.raises(DataError, match=r"empty holds no tokens"):
        MegatronRecords(files(["empty"], split=None, size=5))
    write_dataset(Path("short"), [4])
    with pytest.raises(DataError, match="short holds not enough tokens for one sample of 8"):
        MegatronRecords(files(["text", "short"], size=5))


def test_splits_do_not_overlap() -> None:
    bounds = [split_bounds("969, 30, 1", part, 1000) for part in range(3)]
    assert bounds == [(0, 969), (969, 999), (999, 1000)]
    assert split_bounds("1", 1, 1000) is None


def index_files(folder: Path = Path("text/cache/GPTDataset_indices")) -> dict[str, Path]:
    return {path.name.split("-")[-1]: path for path in folder.iterdir()}


def test_index_files_are_made_once_and_lie_beside_the_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(Path("text"), LENGTHS)
    options = files(["text"], size=30)
    first = GPTSamples(options, 0, 30).read(np.arange(30))
    assert sorted(index_files()) == ["description.txt", "document_index.npy", "sample_index.npy", "shuffle_index.npy"]
    monkeypatch.setattr(GPTSamples, "_build", lambda *_: pytest.fail("built again"))
    assert np.array_equal(GPTSamples(options, 0, 30).read(np.arange(30)), first)


@pytest.mark.parametrize("name", ["document_index.npy", "sample_index.npy", "shuffle_index.npy"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "other", "larger", "words"])
def test_index_files_that_do_not_fit_are_made_anew(name: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    write_dataset(Path("text"), LENGTHS)
    options = files(["text"], size=30)
    first = GPTSamples(options, 0, 30).read(np.arange(30))
    path = index_files()[name]
    content = path.read_bytes()
    path.unlink()
    if damage in ("cut", "empty"):
        path.write_bytes(content[:-1] if damage == "cut" else b"")
    elif damage == "other":
        np.save(path, np.zeros(3, dtype=np.int32))
    elif damage == "larger":
        path.write_bytes(content.replace(b"'shape': (", b"'shape': (9999999999", 1).replace(b" " * 10, b"", 1))
    elif damage == "words":
        np.save(path, np.array(["a", {}], dtype=object), allow_pickle=True)
    assert np.array_equal(GPTSamples(options, 0, 30).read(np.arange(30)), first)
    assert path.read_bytes() == content
    assert ("is made anew" in caplog.text) == (damage != "gone")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_index_files_give_an_error_or_rows_of_the_dataset(tmp_path: Path, data: st.DataObject) -> None:
    prefix = write_dataset(tmp_path / "text", LENGTHS)
    cache = tmp_path / "cache"
    options = files([prefix, prefix], (0.4, 0.6), 20, cache=cache)
    for path in cache.iterdir() if cache.exists() else ():
        path.unlink()
    MegatronRecords(options)
    path = data.draw(st.sampled_from(sorted(cache.glob("*.npy"))))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    tracemalloc.start()
    try:
        inputs, labels = MegatronRecords(options).read_rows(range(20), COLUMNS, 8)
        assert inputs.shape == labels.shape == (20, 8)
        assert inputs.min() >= 0
        assert inputs.max() <= 10 + sum(LENGTHS)
    except DataError:
        pass
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 4 << 20


def test_a_dataset_made_anew_does_not_use_the_old_index(caplog: pytest.LogCaptureFixture) -> None:
    write_dataset(Path("text"), LENGTHS)
    options = files(["text"], size=30)
    GPTSamples(options, 0, 30)
    write_dataset(Path("text"), [*LENGTHS, 50])
    again = GPTSamples(options, 0, 30)
    assert len(again.document_index) % 17 == 0
    assert "does not belong to the dataset as it is now" in caplog.text
    caplog.clear()
    lengths = [*LENGTHS[1:], LENGTHS[0], 50]  # as many tokens in as many documents, but others
    write_dataset(Path("text"), lengths)
    with pytest.raises(
        DataError, match=r"the indices of text in .*GPTDataset_indices are damaged, or were made for ot"
    ):
        GPTSamples(options, 0, 30).read(np.arange(30))


def test_a_folder_that_cannot_be_written_does_not_stop_the_run(caplog: pytest.LogCaptureFixture) -> None:
    write_dataset(Path("text"), LENGTHS)
    expected = GPTSamples(files(["text"], size=9), 0, 9).read(np.arange(9))
    Path("file").touch()
    found = GPTSamples(files(["text"], size=9, cache=Path("file/cache")), 0, 9)
    assert np.array_equal(found.read(np.arange(9)), expected)
    assert "file/cache cannot be written (Not a directory): indices of the dataset are not kept" in caplog.text


def test_no_room_anywhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_dataset(Path("text"), LENGTHS)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"indices .* cannot be written to cache, nor to .*: No space left on device"):
        GPTSamples(files(["text"], size=9, cache=Path("cache")), 0, 9)
    assert list(Path("cache").iterdir()) == []


def test_a_failure_while_building_leaves_nothing() -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    cache = IndexCache(Path("cache"), "Kind", "train", {"a": 1}, {"x": ((4,), (np.dtype(np.int32),))})
    with pytest.raises(ZeroDivisionError):
        cache.open(broken)
    assert list(Path("cache").iterdir()) == []


PROGRAM = """
import sys, time
from pathlib import Path
from runformer.data.megatron import cache
import numpy as np

def build(arrays):
    with open("built", "a") as file:
        file.write("x")
    time.sleep(0.3)
    arrays["x"][:] = np.arange(1000)

kept = cache.IndexCache(Path("cache"), "Kind", "train", {"a": 1}, {"x": ((1000,), (np.dtype(np.int32),))})
assert kept.open(build)["x"].tolist() == list(range(1000))
"""


def test_of_several_processes_one_builds() -> None:
    running = [subprocess.Popen([sys.executable, "-c", PROGRAM]) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    assert Path("built").read_text() == "x"
    assert len(list(Path("cache").iterdir())) == 2


def test_a_blend_takes_from_each_in_turn() -> None:
    write_dataset(Path("a"), [200])
    write_dataset(Path("b"), [400])
    options = files(["a", "b"], size=60, split=None)
    records = MegatronRecords(options)
    assert len(records) == 60
    inputs, labels = records.read_rows([5, 0, 3, 59], COLUMNS, 8)
    assert np.array_equal(inputs[:, 1:], labels[:, :-1])
    one_by_one = [records.read_columns(number, COLUMNS)["input_ids"].tolist() for number in (5, 0, 3, 59)]
    assert inputs.tolist() == one_by_one
    everything = MegatronRecords(files(["a", "b"], split=None))
    of = [everything.read_columns(number, COLUMNS)["input_ids"] for number in range(len(everything))]
    assert len(of) == 199 // 8 + 399 // 8
    assert len({tuple(row) for row in np.array(of).tolist()}) == 399 // 8  # those of a are the first ones of b


def test_a_blend_that_asks_too_much_is_told() -> None:
    write_dataset(Path("a"), [2 * 8 + 1])
    write_dataset(Path("b"), [8 * 8 + 1])
    options = files(["a", "b"], (0.5, 0.5), 4)
    MegatronRecords(options)
    path = next(Path("a/cache/BlendedDataset_indices").glob("*-dataset_sample_index.npy"))
    np.save(path, np.full_like(np.load(path), 1000))
    with pytest.raises(DataError, match=r"the blend takes sample 1000 of [ab], which has fewer: "):
        MegatronRecords(options).read_rows([0, 1], COLUMNS, 8)


@given(
    weights=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    size=st.integers(0, 300),
    compiled=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_ways_to_blend_are_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, weights: list[int], size: int, compiled: bool
) -> None:
    monkeypatch.setattr("runformer.data.megatron.blending.native", native if compiled else None)
    shares = (np.array(weights) / sum(weights)).tolist()
    counts = [0] * len(weights)
    expected = []
    for sample in range(size):
        errors = [share * max(sample, 1) - count for share, count in zip(shares, counts, strict=True)]
        best = errors.index(max(errors))
        expected.append((best, counts[best]))
        counts[best] += 1
    of, number = blending_indices(shares, size)
    assert list(zip(of.tolist(), number.tolist(), strict=True)) == expected
    of, number = exhaustive_blending_indices(weights)
    assert np.bincount(of, minlength=len(weights)).tolist() == weights
    assert all(number[of == dataset].tolist() == list(range(weight)) for dataset, weight in enumerate(weights))


def test_a_large_dataset_takes_no_heap() -> None:
    write_dataset(Path("text"), [50] * 40_000)
    options = files(["text"], (1.0,), 1_000_000, sequence_length=8)
    tracemalloc.start()
    records = MegatronRecords(options)
    records.read_rows(range(0, 1_000_000, 50_000), COLUMNS, 8)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(records) == 1_005_000
    assert most < 24 << 20  # while 20 MB of indices are in files
