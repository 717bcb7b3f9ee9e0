"""``runformer.data.inspect``: what is counted, shown and mended."""

from __future__ import annotations

import io
import sqlite3
import tracemalloc
from collections import Counter
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import write_byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from runformer.config.task import DataOptions, MindRecordFiles
from runformer.data.dataset import TokenDataset
from runformer.data.inspect import figures as figures_module
from runformer.data.inspect.facts import size_text
from runformer.data.inspect.figures import Figures, count
from runformer.data.inspect.files import TokenColumns, open_dataset, read_header, token_columns
from runformer.data.inspect.reindex import reindex
from runformer.data.inspect.report import as_json, as_text, bar, histogram
from runformer.data.inspect.show import Choice, show, unpadded
from runformer.data.inspect.tokens import as_numbers, kinds, visible
from runformer.data.inspect.tokens import as_text as tokens_as_text
from runformer.data.megatron import IndexedWriter
from runformer.data.mindrecord import Column, MindRecordReader, MindRecordWriter
from runformer.data.packing import best_fit, count_rows
from runformer.errors import DataError
from runformer.tokenizer import load_tokenizer

SMALL: dict[str, Any] = {"header_size": 16 << 10, "page_size": 32 << 10}
ROWS = Column("int32", (-1,))


def write_rows(path: Path, rows: list[list[int]], labels: list[list[int]] | None = None, shards: int = 1) -> Path:
    schema = {"input_ids": ROWS} if labels is None else {"input_ids": ROWS, "labels": ROWS}
    with MindRecordWriter(path, schema, shard_num=shards, **SMALL) as writer:
        records = [{"input_ids": np.array(row, dtype="int32")} for row in rows]
        for record, marks in zip(records, labels or [], strict=False):
            record["labels"] = np.array(marks, dtype="int32")
        writer.write(records)
    return path if shards == 1 else path.with_name(f"{path.name}0")


def counted(path: Path, **options: Any) -> Figures:
    records = open_dataset(path)
    columns = token_columns(records)
    assert columns is not None
    return count(records, columns, **options)


# Figures


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60).flatmap(lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room), max_size=90))))
def test_rows_are_counted_as_best_fit_makes_them(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    assert count_rows(Counter(lengths), capacity) == len(best_fit(lengths, capacity))


@pytest.mark.parametrize("lengths", [{0: 1}, {5: 1}])
def test_rows_cannot_be_counted_of_what_does_not_fit(lengths: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="not 1 to 4"):
        count_rows(lengths, 4)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]] | None]:
    size = st.just(draw(st.integers(0, 9))) if draw(st.booleans()) else st.integers(0, 9)
    rows = draw(st.lists(size.flatmap(lambda n: st.lists(st.integers(0, 3), min_size=n, max_size=n)), max_size=12))
    labelled = draw(st.booleans())
    marks = [[draw(st.sampled_from([-100, 0, 7])) for _ in row] for row in rows] if labelled else None
    return rows, marks


@settings(max_examples=80, deadline=None)
@given(datasets(), st.sampled_from([0, 1, 9]), st.sampled_from([1, 5, 1000]))
def test_every_figure_as_counted_by_hand(
    tmp_path_factory: pytest.TempPathFactory,
    dataset: tuple[list[list[int]], list[list[int]] | None],
    pad: int,
    batch: int,
) -> None:
    rows, labels = dataset
    path = write_rows(tmp_path_factory.mktemp("rows") / "x.mindrecord", rows, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures_module, "_BATCH_TOKENS", batch)
        found = counted(path, pad_token_id=pad)
    lengths = [max((place + 1 for place, token in enumerate(row) if token != pad), default=0) for row in rows]
    everything = [token for row in rows for token in row]
    learnt = sum(
        token != pad and (labels is None or labels[number][place + 1] != -100)
        for number, row in enumerate(rows)
        for place, token in enumerate(row[:-1])
    )
    assert found.records == len(rows)
    assert found.stored == len(everything)
    assert found.lengths == Counter(lengths)
    assert found.tokens == sum(lengths)
    assert found.counted == learnt
    assert found.empty == lengths.count(0)
    assert found.distinct == len(set(everything))
    assert (found.smallest, found.largest) == ((min(everything), max(everything)) if everything else (None, None))
    assert found.quantile(0.5) == (sorted(lengths)[(len(lengths) - 1) // 2] if lengths else 0)


def test_what_counts_is_what_training_counts(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = random.integers(0, 5, (40, 17)).tolist()
    labels = np.where(random.random((40, 17)) < 0.3, -100, 3).tolist()
    for marks, columns in ((labels, ("input_ids", "labels")), (None, ("input_ids",))):
        path = write_rows(tmp_path / f"{len(columns)}.mindrecord", rows, marks)
        options = DataOptions(
            source=MindRecordFiles(paths=(path,)),
            columns=columns,
            shuffle=None,
            seed=1,
            pad_token_id=0,
            ignore_token_id=-100,
        )
        dataset = TokenDataset(options, None, 5)
        batch = dataset.rows(range(len(dataset)))
        assert counted(path, pad_token_id=0).counted == int((batch.labels_BL != -100).sum())


def test_packing_and_padding_of_padded_rows(tmp_path: Path) -> None:
    rows = [[5] * size + [0] * (10 - size) for size in (10, 4, 6, 3, 3, 4)]
    found = counted(write_rows(tmp_path / "x.mindrecord", rows))
    assert (found.pad_token_id, found.pad_guessed) == (0, True)
    packing = found.packing()
    assert packing is not None
    assert (packing.rows_before, packing.rows_after, packing.tokens) == (6, 3, 30)
    assert found.padding == 0.5
    text = as_text(found)
    assert "50.0 % of rows of 10 tokens; padding is id 0, a guess" in text
    assert "one record a row takes 6 rows (50.0 % tokens); packed, 3 (100.0 %): 2.00 times fewer" in text


def test_rows_of_another_length_than_the_records(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.mindrecord", [[1] * 9, [1] * 3, [1] * 2, []])
    found = counted(path, sequence_length=4)
    assert (found.row_length, found.too_long, found.empty) == (5, 1, 1)
    packing = found.packing()
    assert packing is not None
    assert (packing.rows_before, packing.rows_after, packing.tokens) == (4, 2, 10)
    text = as_text(found)
    assert "4, 1 of them empty" in text
    assert "1 records have more than the 5 tokens of a row" in text
    assert counted(path).packing() is None
    assert "--seq_length says how long rows are" in as_text(counted(path))


@pytest.mark.parametrize(
    ("rows", "guess"),
    [
        ([[1, 2, 3, 3, 3, 3], [4, 3, 3, 3, 3, 3], [1, 2, 4, 5, 6, 7]], 3),
        ([[1, 2, 3, 3, 3], [4, 1, 1, 3, 3]], None),
        ([[1, 3, 3, 3, 3], [4, 2, 2, 2, 2]], None),
        ([[3, 3, 3, 3, 3], [3, 1]], None),
        ([[3, 3, 3], []], None),
        ([], None),
    ],
)
def test_padding_is_guessed_only_where_records_agree(tmp_path: Path, rows: list[list[int]], guess: int | None) -> None:
    found = counted(write_rows(tmp_path / "x.mindrecord", rows))
    assert found.pad_token_id == guess
    assert as_json(found)["pad_token_id_guessed"] is (guess is not None)


def test_ids_that_no_vocabulary_has(tmp_path: Path) -> None:
    path = tmp_path / "x.mindrecord"
    with MindRecordWriter(path, {"input_ids": Column("int64", (-1,))}, **SMALL) as writer:
        writer.write([{"input_ids": np.array([-5, 3, 2**62, 2**24, 3, 2**24 - 1, -(2**63)])}])
    tracemalloc.start()
    try:
        found = counted(path, pad_token_id=0)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()
    assert (found.smallest, found.largest, found.distinct) == (-(2**63), 2**62, 2)
    assert (found.negative, found.beyond) == (2, 2)
    assert "2 tokens are negative" in as_text(found)
    assert "2 tokens are 16,777,216 or more" in as_text(found)


def test_memory_does_not_grow_with_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures_module, "_BATCH_TOKENS", 1 << 12)
    peaks = []
    for records in (200, 1600):
        path = write_rows(tmp_path / f"{records}.mindrecord", [[7] * (n % 97 + 1) for n in range(records)])
        opened = open_dataset(path)
        tracemalloc.start()
        count(opened, TokenColumns("input_ids", None), pad_token_id=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0] + 4 * 1600


def test_records_without_one_label_a_token(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.mindrecord", [[1, 2], [3, 4, 5]], [[1, 2], [3, 4]])
    with pytest.raises(DataError, match=r"record 1 of .* has 3 'input_ids' and 2 'labels': not one label a token"):
        counted(path)


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures_module, "_BATCH_TOKENS", 40)
    told: list[int] = []
    counted(write_rows(tmp_path / "x.mindrecord", [[1] * 10] * 11), advance=told.append)
    assert told == [4, 4, 3]


def test_documents_of_megatron(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "text.v1", "uint16") as writer:
        for row in ([1, 2, 3], [], [60000] * 9, [4]):
            writer.add(np.array(row, dtype="uint16"))
    for name in ("text.v1", "text.v1.bin", "text.v1.idx"):
        found = counted(tmp_path / name, sequence_length=4)
        assert (found.records, found.tokens, found.counted, found.largest) == (4, 13, 10, 60000)
        assert (found.lengths, found.padding) == (Counter([3, 0, 9, 1]), 0.0)
    assert "none: samples run on" in as_text(found)
    records = open_dataset(tmp_path / "text.v1")
    assert records.describe(2).startswith("document 2 of")
    assert records.read_columns(2, ["tokens"])["tokens"].tolist() == [60000] * 9
    (tmp_path / "text.v1.bin").unlink()
    with pytest.raises(DataError, match="is not there"):
        open_dataset(tmp_path / "text.v1.idx")


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 200_000), st.integers(1, 10**6), min_size=1, max_size=30))
def test_a_histogram_has_every_record_once(lengths: dict[int, int]) -> None:
    lines = histogram(Counter(lengths))
    assert len(lines) <= 14
    shown = [line.replace(",", "").split("%")[0].split() for line in lines]
    bounds = [(int(words[0]), int(words[2]) if words[1] == "to" else int(words[0])) for words in shown]
    counts = [int(words[-2]) for words in shown]
    assert [sum(n for length, n in lengths.items() if low <= length <= high) for low, high in bounds] == counts
    assert sum(counts) == sum(lengths.values())
    assert all(("█" in line or line[-1] in "▏▎▍▌▋▊▉") == (n > 0) for line, n in zip(lines, counts, strict=True))


def test_bars() -> None:
    assert [bar(part) for part in (0, 1e-9, 1 / 40, 0.5, 1)] == ["", "▏", "█", "█" * 20, "█" * 40]
    assert [size_text(size) for size in (0, 1023, 1024, 1536, 1 << 40, 1 << 52)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.5 KiB",
        "1 TiB",
        "4096 TiB",
    ]


# Columns


def test_which_columns_hold_tokens(tmp_path: Path) -> None:
    schema = {
        "a": Column("float32", (-1,)),
        "b": ROWS,
        "k": Column("int32"),
        "labels": ROWS,
        "m": Column("int32", (2, 2)),
    }
    path = tmp_path / "x.mindrecord"
    with MindRecordWriter(path, schema, **SMALL) as writer:
        row = np.zeros(3, "int32")
        square = np.zeros((2, 2), "int32")
        writer.write([{"a": np.zeros(3, "float32"), "b": row, "k": 1, "labels": row, "m": square}])
    records = open_dataset(path)
    assert token_columns(records) == TokenColumns("b", "labels")
    assert token_columns(records, ["labels", "b"]) == TokenColumns("labels", "b")
    with pytest.raises(DataError, match="has no column 'bb'") as caught:
        token_columns(records, ["bb"])
    assert "did you mean 'b'?" in str(caught.value)
    for name in ("a", "k", "m"):
        with pytest.raises(DataError, match="does not hold rows of token ids"):
            token_columns(records, [name])


def test_a_dataset_without_tokens(tmp_path: Path) -> None:
    with MindRecordWriter(tmp_path / "x.mindrecord", {"s": Column("string")}, **SMALL) as writer:
        writer.write([{"s": "text"}])
    assert token_columns(open_dataset(tmp_path / "x.mindrecord")) is None


# Showing


def shown(path: Path, **choice: Any) -> str:
    console = Console(file=io.StringIO(), width=100, highlight=False, markup=False, emoji=False)
    show(path, Choice(**choice), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_show_greys_what_is_not_learnt_and_folds_padding(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_byte_tokenizer(tmp_path / "tokenizer"))
    prompt, answer = tokenizer.encode("<|user|>Größe?<|end|>"), tokenizer.encode("[bold]漢字<|end|>")
    row = [*prompt, *answer, *[0] * 12]
    marks = [*[-100] * len(prompt), *answer, *[-100] * 12]
    path = write_rows(tmp_path / "x.mindrecord", [row], [marks])
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard", highlight=False)
    show(path, Choice(tokenizer=tokenizer), console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b[2m<|user|>Größe?<|end|>\x1b[0m[bold]漢字<|end|>\x1b[35m … ×12 padding\x1b[0m" in text
    assert f"int32 [{len(row)}]; in labels {len(answer)} positions count, the others are grey" in text
    plain = shown(path)
    assert f"{' '.join(map(str, [*prompt, *answer]))}  … ×12 padding\n" in plain
    assert "×" not in shown(write_rows(tmp_path / "y.mindrecord", [[1, 2, 3, 3]]))


def test_show_takes_the_middle_out_of_long_records(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.mindrecord", [list(range(1000, 1100))])
    text = shown(path, tokens=8)
    assert "1000 1001 1002 1003 1004 1005 \n… 92 tokens …\n1098 1099 \n" in text
    assert " ".join(map(str, range(1000, 1100))) in shown(path, tokens=None)
    assert "\n… 100 tokens …\n" in shown(path, tokens=0)


def test_show_every_kind_of_value(tmp_path: Path) -> None:
    path = tmp_path / "x.mindrecord"
    schema = {"b": Column("bytes"), "f": Column("float64", (-1, 2)), "s": Column("string"), "k": Column("int64")}
    with MindRecordWriter(path, schema, description="made\x1b[31m for this", **SMALL) as writer:
        square = np.arange(20, dtype="float64").reshape(10, 2)
        writer.write([{"b": bytes(range(20)), "f": square, "s": "\x1b]0;title\x07 [red]é\u202e" + "x" * 500, "k": -7}])
    text = shown(path)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "MindRecord 3.0" in text
    assert "made␛[31m for this" in text
    assert "float64 [10, 2]  0.0 1.0 2.0 3.0 4.0 5.0 6.0 7.0 …" in text
    assert "20 bytes  00 01 02 03 04 05 06 07 …" in text
    assert "[red]é" in text
    assert "518 characters" in text
    assert "  k  -7\n" in text


def test_show_shards_and_which_records(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.mindrecord", [[number] for number in range(10)], shards=3)
    text = shown(path, first=8, count=5)
    assert "x.mindrecord2: shard 2 of 3, 3 records" in text
    assert [line for line in text.splitlines() if line.startswith("record ")] == [
        f"record 8  record 1 of {tmp_path}/x.mindrecord2",
        f"record 9  record 2 of {tmp_path}/x.mindrecord2",
    ]
    with pytest.raises(DataError, match="has records 0 to 9, but --from asks for 10"):
        shown(path, first=10)


def test_show_a_dataset_without_records(tmp_path: Path) -> None:
    text = shown(write_rows(tmp_path / "x.mindrecord", []))
    assert "no index" not in text
    assert "x.mindrecord: 0 records" in text


@pytest.mark.parametrize(
    ("row", "pad", "length"),
    [
        ([], None, 0),
        ([1, 1, 1], None, 3),
        ([1, 2, 2, 2, 2], None, 1),
        ([5] * 9, None, 0),
        ([5, 0], 0, 1),
        ([5, 1, 1, 1, 1], 0, 5),
    ],
)
def test_where_padding_begins(row: list[int], pad: int | None, length: int) -> None:
    assert unpadded(np.array(row, dtype=np.int64), pad) == length


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.lists(st.booleans(), min_size=200, max_size=200)
)
def test_parts_of_a_text_make_the_text(tmp_path_factory: pytest.TempPathFactory, text: str, learnt: list[bool]) -> None:
    folder = tmp_path_factory.getbasetemp() / "tokenizer_of_parts"
    tokenizer = load_tokenizer(folder if folder.is_dir() else write_byte_tokenizer(folder))
    ids = np.array(tokenizer.encode(text), dtype=np.int64)
    labels = np.where(np.resize(learnt, ids.shape), ids, -100)
    stretches = kinds(labels, len(ids))
    assert all(one[2] != other[2] and one[1] == other[0] for one, other in pairwise(stretches))
    parts = tokens_as_text(ids, stretches, tokenizer)
    assert "".join(part.text for part in parts) == visible(tokenizer.decode(ids.tolist(), skip_special_tokens=False))
    assert "".join(part.text for part in as_numbers(ids, stretches)).split() == [str(token) for token in ids.tolist()]


def test_ids_outside_the_vocabulary_and_halves_of_characters(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_byte_tokenizer(tmp_path))
    ids = np.array([*tokenizer.encode("aé"), -7, 2**40])
    assert [part.text for part in tokens_as_text(ids, kinds(None, len(ids)), tokenizer)] == ["aé⟨2 unknown ids⟩"]
    half = ids[1:2]
    assert tokens_as_text(half, kinds(None, 1), tokenizer, cut=True)[0].text == ""
    assert tokens_as_text(half, kinds(None, 1), tokenizer)[0].text == "\N{REPLACEMENT CHARACTER}"


# Indexes


def outcomes(path: Path) -> list[tuple[bool, str | None]]:
    return [(done.written, done.wrong) for done in reindex(path)]


def edit(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as index, index:
        index.execute(statement)


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    path = tmp_path / "x.mindrecord"
    schema = {"ids": ROWS, "k": Column("int64"), "s": Column("string"), "x": Column("float64")}
    with MindRecordWriter(path, schema, **SMALL) as writer:
        rows = [np.full(number * 100, number, "int32") for number in range(30)]
        writer.write([{"ids": ids, "k": -n, "s": "é" * n, "x": n / 3} for n, ids in enumerate(rows)])
    return path


def test_an_index_that_agrees_is_left_alone(indexed: Path) -> None:
    index = Path(f"{indexed}.db")
    before = index.stat()
    assert outcomes(indexed) == [(False, None)]
    assert outcomes(index) == [(False, None)]  # its own name means the same
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_index_of_fewer_columns_agrees(indexed: Path) -> None:
    index = Path(f"{indexed}.db")
    for column in ("s_0", "x_0"):
        edit(index, f"ALTER TABLE INDEXES DROP COLUMN {column}")
    assert outcomes(indexed) == [(False, None)]


@pytest.mark.parametrize(
    ("statement", "wrong"),
    [
        ("UPDATE INDEXES SET PAGE_OFFSET_BLOB = 9 WHERE ROW_ID = 2", "PAGE_OFFSET_BLOB of record 2 is 9, not "),
        ("UPDATE INDEXES SET k_0 = 5 WHERE ROW_ID = 3", "k_0 of record 3 is 5, not -3"),
        ("UPDATE INDEXES SET s_0 = 'other' WHERE ROW_ID = 4", "s_0 of record 4 is 'other', not 'éééé'"),
        ("UPDATE INDEXES SET x_0 = 0.5 WHERE ROW_ID = 5", "x_0 of record 5 is 0.5, not 1.66"),
        ("UPDATE INDEXES SET x_0 = NULL WHERE ROW_ID = 5", "x_0 of record 5 is None"),
        ("DELETE FROM INDEXES WHERE ROW_ID >= 28", "it lacks record 28 and what follows"),
        ("DELETE FROM INDEXES", "it lacks record 0 and what follows"),
        ("DELETE FROM INDEXES WHERE ROW_ID = 4", "ROW_ID of record 4 is 5, not 4"),
        ("UPDATE INDEXES SET ROW_ID = 'x' WHERE ROW_ID = 0", "ROW_ID of record 0 is "),
        ("ALTER TABLE INDEXES ADD COLUMN color_0 TEXT", "it has columns that the data lacks: color_0"),
        ("ALTER TABLE INDEXES RENAME COLUMN ROW_GROUP_ID TO g", "it has no places of records"),
        ("UPDATE SHARD_NAME SET NAME = 'y.mindrecord'", "it is that of y.mindrecord"),
        ("DELETE FROM SHARD_NAME", "it is that of no file"),
        ("DROP TABLE SHARD_NAME", "it cannot be read"),
        ("DROP TABLE INDEXES", "it cannot be read (it has no table INDEXES)"),
        ("ALTER TABLE INDEXES RENAME TO kept", "it cannot be read (it has no table INDEXES)"),
    ],
)
def test_an_index_that_disagrees_is_made_anew(indexed: Path, statement: str, wrong: str) -> None:
    index = Path(f"{indexed}.db")
    right = index.read_bytes()
    edit(index, statement)
    [(written, how)] = outcomes(indexed)
    assert written
    assert how is not None
    assert how.startswith(wrong)
    assert index.read_bytes() == right
    assert [path.name for path in indexed.parent.iterdir() if path.name.startswith(".")] == []


def test_a_view_in_the_place_of_the_table_is_not_asked(indexed: Path) -> None:
    index = Path(f"{indexed}.db")
    edit(index, "DROP TABLE INDEXES")
    endless = "WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c) SELECT n AS ROW_ID FROM c"
    edit(index, f"CREATE VIEW INDEXES AS {endless}")
    assert outcomes(indexed) == [(True, "it cannot be read (it has no table INDEXES)")]


def test_an_index_with_more_records(indexed: Path) -> None:
    index = Path(f"{indexed}.db")
    places = "PAGE_ID_RAW, PAGE_OFFSET_RAW, PAGE_OFFSET_RAW_END, ROW_GROUP_ID, PAGE_ID_BLOB, PAGE_OFFSET_BLOB"
    values = f"30, {places}, PAGE_OFFSET_BLOB_END, 0, 1, 0, 'a', 0, 1"
    edit(index, f"INSERT INTO INDEXES SELECT {values} FROM INDEXES WHERE ROW_ID = 0")
    assert outcomes(indexed) == [(True, "it has more records")]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.floats(0, 1), st.floats(0, 1))
def test_any_bytes_in_the_place_of_an_index(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: float, kept: float
) -> None:
    folder = tmp_path_factory.mktemp("noise")
    path = write_rows(folder / "x.mindrecord", [[1, 2]] * 20)
    index = Path(f"{path}.db")
    right = index.read_bytes()
    begin = int(place * len(right))
    index.write_bytes((right[:begin] + noise + right[begin + len(noise) :])[: int(kept * len(right))])
    outcomes(path)
    assert outcomes(path) == [(False, None)]  # whatever it was, now it agrees
    with MindRecordReader(path) as reader:
        assert len(reader) == 20
        assert all(reader[row]["input_ids"].tolist() == [1, 2] for row in range(20))


def test_missing_indexes_of_all_shards_and_of_a_folder(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.mindrecord", [[1]] * 9, shards=3)
    kept = [index.read_bytes() for index in sorted(tmp_path.glob("*.db"))]
    for index in tmp_path.glob("*.db"):
        index.unlink()
    assert outcomes(path) == [(True, None)] * 3
    assert [index.read_bytes() for index in sorted(tmp_path.glob("*.db"))] == kept
    Path(f"{path}.db").unlink()
    assert outcomes(tmp_path) == [(True, None), (False, None), (False, None)]
    path.with_name("x.mindrecord2").unlink()
    with pytest.raises(DataError, match=r"one of 3 shards, but x\.mindrecord2 is not beside it"):
        outcomes(path)


def test_damaged_data_gets_no_index(indexed: Path) -> None:
    index = Path(f"{indexed}.db")
    before = index.read_bytes()
    content = bytearray(indexed.read_bytes())
    content[16 << 10] ^= 1
    indexed.write_bytes(bytes(content))
    with pytest.raises(DataError, match="is damaged") as caught:
        outcomes(indexed)
    assert "an index cannot mend it" in str(caught.value)
    assert index.read_bytes() == before
    assert len(list(indexed.parent.iterdir())) == 2


def test_an_index_cannot_be_made_for_megatron(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "text") as writer:
        writer.add([1, 2])
    with pytest.raises(DataError, match="belongs to Megatron-LM's"):
        outcomes(tmp_path / "text.bin")


# Headers


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is not a MindRecord file"), (b"abc", "is not a MindRecord file"), (b"\2\0\0\0\0\0\0\0{}", "not a sound")],
)
def test_other_files_have_no_header(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_header(tmp_path / "x")
    with pytest.raises(DataError, match="cannot be read"):
        read_header(tmp_path / "y")


def test_an_index_in_the_place_of_its_file(indexed: Path) -> None:
    with pytest.raises(DataError, match="is the index of a MindRecord file"):
        open_dataset(Path(f"{indexed}.db"))
