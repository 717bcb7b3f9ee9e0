"""A run that is stopped goes on behind its last chunk, and writes what it would have written; lists of bad records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import write_byte_tokenizer
from preparing import Watcher, prepared, rows, same_files, spoken

from runformer.data.prepare import engine
from runformer.data.prepare.chunks import WorkFolder
from runformer.data.prepare.encode import Counts
from runformer.errors import DataError
from runformer.tokenizer import load_tokenizer

RECORDS = [{"instruction": f"Count to {n % 9}.", "output": " ".join(map(str, range(n % 9)))} for n in range(200)]
KINDS = ["json", "jsonl", "jsonl.gz", "csv", "parquet"]


class Stop(BaseException):
    """In place of a signal."""


class Stopping(Watcher):
    """Stops the run when so many blocks are encoded."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self._left = blocks

    def encoded(self, consumed: int, counts: Counts) -> None:
        super().encoded(consumed, counts)
        self._left -= 1
        if self._left < 0:
            raise Stop


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("blocks", "json_list", "tables"):
        monkeypatch.setattr(f"runformer.data.prepare.{module}.BLOCK", 350)


def write(folder: Path, kind: str = "jsonl", records: list[Any] = RECORDS) -> Path:
    import gzip

    path = folder / f"records.{kind}"
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if kind == "json":
        path.write_text(json.dumps(records, indent=1))
    elif kind == "csv":
        path.write_text("instruction,output\n" + "".join(f"{r['instruction']},{r['output']}\n" for r in records))
    elif kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=60)
    else:
        path.write_bytes(gzip.compress(lines.encode()) if kind.endswith("gz") else lines.encode())
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"pack": True}, {"stage": "pretrain"}, {"to": "megatron"}])
def test_the_same_file_however_often_it_is_stopped(
    tokenizer: Path, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    source = write(tmp_path, kind)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = prepared(source, tmp_path / "whole" / "x", tokenizer, **options)
    target = tmp_path / "stopped" / "x"
    stops = 0
    while True:
        watcher = Stopping(4)
        try:
            report = prepared(source, target, tokenizer, chunk_size=700, watcher=watcher, **options)
            break
        except Stop:
            stops += 1
            assert [path.suffix for path in target.parent.iterdir()] == [".work"]
    assert stops > 2
    assert any("going on behind" in line for line in watcher.said)
    assert (report.counts, report.rows) == (whole.counts, whole.rows)
    for file in whole.files:
        assert same_files(file, target.parent / file.name)
    assert sorted(path.name for path in target.parent.iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


def stop_in(owner: Any, name: str) -> Callable[[], None]:
    """Stop when a function is called."""

    def stopped(*_: Any, **__: Any) -> None:
        raise Stop

    context = pytest.MonkeyPatch()
    context.setattr(owner, name, stopped)
    return context.undo


@pytest.mark.parametrize(
    ("owner", "name"), [(engine, "write_mindrecord"), (WorkFolder, "decide"), (WorkFolder, "finish")]
)
def test_stopped_near_the_end(tokenizer: Path, tmp_path: Path, owner: Any, name: str) -> None:
    source = write(tmp_path)
    undo = stop_in(owner, name)
    with pytest.raises(Stop):
        prepared(source, tmp_path / "x", tokenizer)
    undo()
    assert not (tmp_path / "x").exists()
    report = prepared(source, tmp_path / "x", tokenizer, watcher=(watcher := Watcher()))
    assert len(watcher.said) == 1
    prepared(source, tmp_path / "y", tokenizer)
    assert len(rows(tmp_path / "x")) == len(rows(tmp_path / "y")) == report.rows.rows == len(RECORDS)
    assert not (tmp_path / "x.work").exists()


def test_stopped_between_the_data_and_its_index(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path)
    replace = Path.replace

    def stop_at_index(path: Path, target: Path) -> Path:
        if path.name == "x.db" and path.parent.name == "out" and target.parent == tmp_path:
            raise Stop
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop_at_index)
    with pytest.raises(Stop):
        prepared(source, tmp_path / "x", tokenizer)
    monkeypatch.undo()
    assert (tmp_path / "x").exists()
    assert not (tmp_path / "x.db").exists()
    prepared(source, tmp_path / "x", tokenizer)
    assert (tmp_path / "x.db").exists()
    assert len(rows(tmp_path / "x")) == len(RECORDS)
    with pytest.raises(DataError, match="x exists already"):
        prepared(source, tmp_path / "x", tokenizer)


def test_other_inputs_or_options_begin_anew(tokenizer: Path, tmp_path: Path) -> None:
    source = write(tmp_path)
    for changed in ("template", "source", "finished"):
        with pytest.raises(Stop):
            prepared(source, tmp_path / "x", tokenizer, chunk_size=1400, watcher=Stopping(9))
        if changed == "source":
            source = write(tmp_path, records=RECORDS[::-1])
        watcher = Stopping(3 if changed != "finished" else 1000)
        options = {"template": "alpaca"} if changed == "template" else {"too_long": "drop"}
        try:
            prepared(source, tmp_path / "x", tokenizer, 29, chunk_size=1400, watcher=watcher, **options)
        except Stop:
            assert changed != "finished"
        assert watcher.said == [
            "what an earlier run left is not used: the inputs, the tokenizer or the options changed"
        ]
        assert watcher.consumed[0] == 0
    assert len(rows(tmp_path / "x")) == sum(len(f"{r['instruction']}{r['output']}") + 4 <= 30 for r in RECORDS)


def test_damaged_chunks_are_made_again(tokenizer: Path, tmp_path: Path) -> None:
    source = write(tmp_path)
    prepared(source, tmp_path / "y", tokenizer)
    with pytest.raises(Stop):
        prepared(source, tmp_path / "x", tokenizer, chunk_size=700, watcher=Stopping(14))
    chunks = sorted((tmp_path / "x.work").glob("chunk-*.bin"))
    assert len(chunks) > 4
    chunks[2].write_bytes(chunks[2].read_bytes()[:-1])
    (tmp_path / "x.work" / "chunk-000001.json").write_text("{")
    (tmp_path / "x.work" / "chunk-000004.bin.tmp").write_text("half")
    watcher = Watcher()
    prepared(source, tmp_path / "x", tokenizer, chunk_size=700, watcher=watcher)
    assert watcher.said[0].endswith("which 1 chunks already hold")
    assert [spoken(load_tokenizer(tokenizer), row["labels"]) for row in rows(tmp_path / "x")] == [
        spoken(load_tokenizer(tokenizer), row["labels"]) for row in rows(tmp_path / "y")
    ]


def test_one_process_at_a_time(tokenizer: Path, tmp_path: Path) -> None:
    source = write(tmp_path)
    with WorkFolder.opened(tmp_path / "x.work"):
        with pytest.raises(DataError, match="is in use: another process"):
            prepared(source, tmp_path / "x", tokenizer)
        assert (tmp_path / "x.work").exists()
    assert not (tmp_path / "x.work").exists()


def test_an_output_that_cannot_be(tokenizer: Path, tmp_path: Path) -> None:
    source = write(tmp_path)
    with pytest.raises(DataError, match=r"x\.work cannot be written: No such file") as caught:
        prepared(source, tmp_path / "none" / "x", tokenizer)
    assert caught.value.hint == "check that the folder exists, is writable and has room"


def bad_lines() -> list[str]:
    lines = [json.dumps(record) for record in RECORDS]
    lines[10], lines[50], lines[150] = "{", '{"instruction": "a"}', '{"instruction": "a", "output": "\\ud800"}'
    return lines


def test_bad_records_are_skipped_and_listed(tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "records.jsonl"
    source.write_text("\n".join(bad_lines()))
    for allowed, line in ((0, 11), (1, 51), (2, 151)):
        with pytest.raises(DataError, match=rf"records\.jsonl: line {line}") as caught:
            prepared(source, tmp_path / "x", tokenizer, skip_bad=allowed)
        assert ("were skipped" in caught.value.message) == (allowed > 0)
        assert not (tmp_path / "x").exists()
    report = prepared(source, tmp_path / "x", tokenizer, skip_bad=3)
    assert (report.counts.bad, report.rows.rows, report.bad_file) == (3, 197, tmp_path / "x.bad.jsonl")
    listed = [json.loads(line) for line in (tmp_path / "x.bad.jsonl").read_text().splitlines()]
    assert [each["where"] for each in listed] == [f"{source}: line {number}" for number in (11, 51, 151)]
    assert listed[1]["problem"] == " has no 'output'"
    assert listed[1]["hint"]


def test_what_was_done_before_a_bad_record_is_kept(tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "records.jsonl"
    source.write_text("\n".join(bad_lines()))
    watcher = Watcher()
    with pytest.raises(DataError, match="line 151"):
        prepared(source, tmp_path / "x", tokenizer, skip_bad=2, chunk_size=1400, watcher=watcher)
    assert watcher.said == [f"what is done so far is kept in {tmp_path / 'x.work'}; the same command goes on behind it"]
    watcher = Watcher()
    report = prepared(source, tmp_path / "x", tokenizer, skip_bad=3, chunk_size=1400, watcher=watcher)
    assert "going on behind" in watcher.said[0]
    assert report.counts.bad == 3
    with pytest.raises(DataError, match="line 151"):
        prepared(source, tmp_path / "y", tokenizer, skip_bad=2, chunk_size=1400)
    with pytest.raises(DataError, match="line 11"):  # the chunks that are there hold more than may be skipped now
        prepared(source, tmp_path / "y", tokenizer, skip_bad=0, chunk_size=1400)
    assert (tmp_path / "y.work").exists()


def test_a_bad_record_before_the_damage_is_told_first(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('[{"instruction": "a", "output": "b"}, {"output": "b"}, {"a"')
    with pytest.raises(DataError, match="record 2 has no 'instruction'"):
        prepared(tmp_path / "x.json", tmp_path / "x", tokenizer)


def test_progress_reaches_the_end(tokenizer: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        sources = [write(tmp_path, kind), write(tmp_path, "jsonl")]
        prepared(sources, tmp_path / kind, tokenizer, watcher=(watcher := Watcher()))
        assert watcher.consumed == sorted(watcher.consumed)
        assert watcher.consumed[-1] == watcher.size > 0
