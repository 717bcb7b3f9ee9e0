"""training.jsonl: rows that read back exactly, and a file that survives a crash at any byte."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runformer.errors import RunformerError, TrainingError
from runformer.observe import MetricsWriter, StepRow, parse_row, read_rows

ROW = StepRow(
    step=1,
    epoch=1,
    loss=6.314692497253418,
    grad_norm=2.53949236869812,
    lr=0.000750000006519258,
    tokens=512,
    tokens_per_second=198.0,
    step_seconds=2.5,
    mfu=None,
    peak_memory_bytes=123_456_789,
    data_seconds=0.001,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(
    StepRow,
    step=st.integers(1, 10**7),
    epoch=st.integers(1, 10**4),
    loss=finite,
    grad_norm=st.none() | finite,
    lr=finite,
    tokens=st.integers(0, 10**12),
    tokens_per_second=finite,
    step_seconds=finite,
    mfu=st.none() | finite,
    peak_memory_bytes=st.integers(0, 10**15),
    data_seconds=finite,
)
in_place = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def write(path: Path, *written: StepRow) -> None:
    with MetricsWriter(path) as writer:
        for row in written:
            writer.write(row)


def test_keys_stand_in_the_order_of_the_design():
    first, last = (
        "step epoch loss grad_norm lr tokens",
        "tokens_per_second step_seconds mfu peak_memory_bytes data_seconds",
    )
    assert " ".join(json.loads(ROW.to_json())) == f"{first} {last}"


@given(rows)
def test_a_row_reads_back_bit_for_bit(row: StepRow):
    assert parse_row(row.to_json()) == row
    assert "\n" not in row.to_json()


@pytest.mark.parametrize("key", ["loss", "lr", "tokens_per_second", "step_seconds", "data_seconds"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_an_error_that_names_it(tmp_path: Path, key: str, value: float):
    path = tmp_path / "training.jsonl"
    write(path, ROW)
    with pytest.raises(TrainingError, match=f"step 2: {key} is {value}"):
        write(path, replace(ROW, step=2, **{key: value}))
    assert read_rows(path) == [ROW]


def test_a_norm_that_overflowed_is_null():
    assert parse_row(replace(ROW, grad_norm=math.inf).to_json()).grad_norm is None


def test_rows_of_a_resumed_run_replace_those_it_repeats(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "training.jsonl"
    steps = [replace(ROW, step=step, loss=float(step)) for step in (1, 2, 3, 4)]
    repeated = [replace(row, loss=row.loss + 100) for row in steps[2:]]
    write(path, *steps)
    write(path, *repeated)
    assert len(path.read_text().splitlines()) == 6
    assert read_rows(path) == steps[:2] + repeated


@in_place
@given(written=st.lists(rows, min_size=1, max_size=4, unique_by=lambda row: row.step), data=st.data())
def test_a_file_cut_at_any_byte_keeps_its_whole_rows(tmp_path: Path, written: list[StepRow], data: st.DataObject):
    path = tmp_path / "training.jsonl"
    whole = b"".join(row.to_json().encode() + b"\n" for row in written)
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)), label="cut")])
    kept = path.read_bytes().count(b"\n")
    assert read_rows(path) == sorted(written[:kept], key=lambda row: row.step)
    after = replace(ROW, step=10**8)
    write(path, after)
    assert read_rows(path) == [*sorted(written[:kept], key=lambda row: row.step), after]
    assert path.read_bytes().startswith(whole[: len(path.read_bytes()) - len(after.to_json()) - 1])


@pytest.mark.parametrize("torn", [b"\0" * 3000, b'{"step": 2, "epoch"\n', b"\0\0\0\n", b"{"])
def test_what_a_crash_leaves_at_the_end_is_removed(tmp_path: Path, torn: bytes):
    path = tmp_path / "training.jsonl"
    line = ROW.to_json().encode() + b"\n"
    path.write_bytes(line + torn)
    MetricsWriter(path).close()
    assert path.read_bytes() == line


@pytest.mark.parametrize(
    "content",
    [
        b"my notes",
        b"my notes\n",
        b"one\ntwo\n",
        b'{"step": 1}\n{"step": 2}\n',
        b"one\n" + ROW.to_json().encode(),
        b"x" * (1 << 20) + b"{" * (1 << 20),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes):
    path = tmp_path / "training.jsonl"
    path.write_bytes(content)
    with pytest.raises(RunformerError, match=r"is not the training\.jsonl of a run") as caught:
        MetricsWriter(path)
    assert caught.value.hint == "move it away, or choose another --output_dir"
    assert path.read_bytes() == content


def test_a_long_file_is_repaired_at_its_end_only(tmp_path: Path):
    path = tmp_path / "training.jsonl"
    line = ROW.to_json().encode() + b"\n"
    whole = line * (3 * 2**20 // len(line))
    path.write_bytes(whole + line[:-5])
    MetricsWriter(path).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "Expecting value"),
        ("[1]", "not an object"),
        (replace(ROW, step=2).to_json().replace('"loss"', '"lost"'), "no key loss"),
        (ROW.to_json().replace('"epoch": 1', '"epoch": 1.5'), "epoch is 1.5"),
        (ROW.to_json().replace('"epoch": 1', '"epoch": true'), "epoch is True"),
        (ROW.to_json().replace('"lr": 0.00', '"lr": NaN, "x": 0.00'), "lr is nan"),
        (ROW.to_json().replace('"tokens": 512', '"tokens": null'), "tokens is None"),
    ],
)
def test_a_damaged_row_is_named_by_its_line(tmp_path: Path, line: str, reason: str):
    path = tmp_path / "training.jsonl"
    path.write_text(f"{ROW.to_json()}\n{line}\n{ROW.to_json()}\n")
    with pytest.raises(RunformerError) as caught:
        read_rows(path)
    assert f"{path}, line 2: not a row of training metrics" in caught.value.message
    assert reason in caught.value.message


@given(st.text() | st.recursive(st.none() | st.integers() | st.floats() | st.text(), st.lists).map(json.dumps))
@example(json.dumps({field.name: 10**400 for field in fields(StepRow)}))
def test_any_text_is_a_row_or_a_value_error(text: str):
    try:
        row = parse_row(text)
    except ValueError:
        return
    assert parse_row(row.to_json()) == row


def test_keys_of_a_later_version_are_ignored():
    assert parse_row(json.dumps({**json.loads(ROW.to_json()), "colour": "blue"})) == ROW


def test_a_missing_file_says_so(tmp_path: Path):
    with pytest.raises(RunformerError, match=r"cannot read .*training\.jsonl: No such file"):
        read_rows(tmp_path / "training.jsonl")


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunformerError, match=r"cannot write .*training\.jsonl: (Not a directory|File exists)"):
        MetricsWriter(tmp_path / "file" / "training.jsonl")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from runformer.errors import RunformerError
from runformer.observe import MetricsWriter, parse_row

row = parse_row(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with MetricsWriter(Path(sys.argv[1])) as writer:
    writer.write(row)
    size = Path(sys.argv[1]).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, size + 20))
    try:
        writer.write(row)
    except RunformerError as error:
        print(error)
"""


def test_a_full_disk_is_one_message_and_no_half_row(tmp_path: Path):
    path = tmp_path / "training.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), ROW.to_json()], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"cannot write {path}: File too large\n  hint: free some space there")
    assert path.read_text() == ROW.to_json() + "\n"


KILLED = """
import dataclasses, sys
from pathlib import Path
from runformer.observe import MetricsWriter, parse_row

row = parse_row(sys.argv[2])
with MetricsWriter(Path(sys.argv[1])) as writer:
    for step in range(1, 10**9):
        writer.write(dataclasses.replace(row, step=step))
        if step % 100 == 0:
            writer.sync()
            print(step, flush=True)
"""


def test_rows_before_a_kill_are_all_there(tmp_path: Path):
    """What was synced before SIGKILL stands, and a second process goes on in the same file."""
    path = tmp_path / "training.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), ROW.to_json()], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        synced = [int(process.stdout.readline()) for _ in range(3)][-1]
        os.kill(process.pid, signal.SIGKILL)
    kept = [row.step for row in read_rows(path)]
    assert kept == list(range(1, len(kept) + 1))
    assert len(kept) >= synced
    write(path, replace(ROW, step=len(kept) + 1))
    assert len(read_rows(path)) == len(kept) + 1
