"""The two console lines against every line that MindFormers itself printed in the oracle runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runformer.observe import EpochMean, LossRecord, format_loss_line, format_progress_line

BATCH_SIZE = 4  # of every oracle run

LOSS_LINE = re.compile(
    r"\{ Epoch:\[ *(?P<epoch>\d+)/ *(?P<epochs>\d+)\], step:\[ *(?P<step>\d+)/ *(?P<steps_per_epoch>\d+)\], "
    r"loss(?::\[(?P<loss>[^/]+)/(?P<mean_loss>[^\]]+)\]|: (?P<alone>[^,]+)), "
    r"per_step_time: (?P<ms>\d+)ms, lr: (?P<lr>[^,]+), overflow cond: (?P<overflow>True|False), "
    r"loss_scale: (?P<loss_scale>[^,]+), "
    r"global_norm: (?:\[(?P<grad_norm>[^\]]+)\]|None)(?:, train_throughput_per_npu: (?P<tflops>.+)T)?$"
)

RECORD = LossRecord(
    epoch=1,
    epochs=2,
    step=8,
    steps_per_epoch=16,
    loss=5.0830812,
    mean_loss=5.80777,
    step_seconds=0.0201979,
    batch_size=4,
    lr=0.0029242425225675106,
    overflow=False,
    loss_scale=1.0,
    grad_norm=1.7127533,
    tflops=0.0068,
)


def parse_loss_line(line: str) -> LossRecord:
    match = LOSS_LINE.search(line)
    assert match is not None, line
    part = match.groupdict()
    counts = {key: int(part[key]) for key in ("epoch", "epochs", "step", "steps_per_epoch")}
    optional = {key: None if part[key] is None else float(part[key]) for key in ("mean_loss", "grad_norm", "tflops")}
    return LossRecord(
        **counts,
        **optional,
        loss=float(part["alone"] or part["loss"]),
        step_seconds=(int(part["ms"]) + 0.5) / 1000,
        batch_size=BATCH_SIZE,
        lr=float(part["lr"]),
        overflow=part["overflow"] == "True",
        loss_scale=float(part["loss_scale"]),
    )


def message(line: str) -> str:
    return line.split(" - INFO - ", 1)[1]


def logged(oracle_dir: Path) -> Iterator[tuple[str, str | None]]:
    """Each loss line of the reference logs with the progress line that follows it, if one does."""
    for path in sorted(oracle_dir.glob("*/reference_log.txt")):
        lines = [message(line) for line in path.read_text().splitlines()]
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if "Epoch:" in line:
                yield line, following if "samples/s/p" in following else None


def test_every_line_of_the_reference_logs_is_reproduced(oracle_dir: Path):
    loss_lines, progress_lines = 0, 0
    for line, following in logged(oracle_dir):
        record = parse_loss_line(line)
        assert format_loss_line(record) == line
        loss_lines += 1
        if following is not None:
            # One time a step is behind all three figures: milliseconds, samples a second, time left.
            match = re.search(r"([\d.]+) samples/s/p", following)
            assert match is not None
            timed = replace(record, step_seconds=BATCH_SIZE / float(match[1]))
            assert (format_loss_line(timed), format_progress_line(timed)) == (line, following)
            progress_lines += 1
    assert (loss_lines, progress_lines) == (192, 128)


@pytest.mark.parametrize("case", ["llama_pretrain", "llama_lora", "llama_resume", "qwen2_finetune_mask"])
def test_exact_figures_of_a_run_give_its_lines(oracle_dir: Path, case: str):
    """From expected.jsonl (exact float32) to the text: losses, epoch means, learning rates, norms."""
    rows = [json.loads(line) for line in (oracle_dir / case / "expected.jsonl").read_text().splitlines()]
    lines = [message(line) for line in (oracle_dir / case / "reference_log.txt").read_text().splitlines()]
    mean = EpochMean()
    for row, line in zip(rows, [line for line in lines if "Epoch:" in line], strict=True):
        printed = parse_loss_line(line)
        means = mean.add(printed.epoch, row["loss"])
        exact = replace(printed, loss=row["loss"], mean_loss=means, lr=row["lr"], grad_norm=row["grad_norm"])
        assert format_loss_line(exact) == line


def test_the_example_of_the_original_documentation():
    assert format_loss_line(RECORD) == (
        "{ Epoch:[  1/  2], step:[    8/   16], loss:[5.083/5.808], per_step_time: 20ms, lr: 0.0029242425, "
        "overflow cond: False, loss_scale: 1.0, global_norm: [1.7127533], train_throughput_per_npu: 0.007T"
    )
    bar = "█" * 12 + " " * 38
    assert format_progress_line(RECORD) == f"   25.0% |{bar}| 198.04039 samples/s/p  0:00:00 }}"[1:]


def test_sink_mode_prints_the_loss_alone():
    assert ", loss: 5.083, per_step_time" in format_loss_line(replace(RECORD, mean_loss=None))


def test_fields_that_are_off():
    line = format_loss_line(replace(RECORD, grad_norm=None, tflops=None))
    assert line.endswith(", loss_scale: 1.0, global_norm: None")


def test_an_overflow_and_its_scale():
    line = format_loss_line(replace(RECORD, overflow=True, loss_scale=32768, grad_norm=float("inf")))
    assert "overflow cond: True, loss_scale: 32768.0, global_norm: [inf], " in line


@pytest.mark.parametrize(
    ("norm", "text"), [(0.012345679, "[0.01234568]"), (123456.79, "[123456.79]"), (1e-05, "[1.e-05]"), (2.0, "[2.]")]
)
def test_a_norm_is_printed_as_numpy_prints_an_array(norm: float, text: str):
    assert f"global_norm: {text}, " in format_loss_line(replace(RECORD, grad_norm=norm))


def test_a_long_run_shows_days():
    record = replace(RECORD, epoch=1, epochs=1, step=1, steps_per_epoch=100_001, step_seconds=2.5)
    assert format_progress_line(record) == f"   0.0% |{' ' * 50}| 1.60000 samples/s/p  2 days, 21:26:40 }}"


def test_the_mean_starts_afresh_with_an_epoch_and_goes_on_after_a_resume():
    mean = EpochMean()
    assert [mean.add(1, 4.0), mean.add(1, 2.0), mean.add(2, 7.0)] == [4.0, 3.0, 7.0]
    resumed = EpochMean()
    for epoch, loss in [(1, 4.0), (1, 2.0), (2, 7.0)]:
        resumed.add(epoch, loss)
    assert resumed.add(2, 8.0) == mean.add(2, 8.0) == 7.5


positive = st.floats(2.0**-20, 2.0**20, width=32)


@given(
    epochs=st.integers(1, 9999),
    steps_per_epoch=st.integers(1, 999_999),
    where=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    figures=st.tuples(positive, st.none() | positive, positive, positive, st.none() | positive, st.none() | positive),
)
def test_any_line_reads_back_as_itself(epochs, steps_per_epoch, where, figures):
    loss, mean, lr, scale, norm, tflops = figures
    epoch, step = 1 + int(where[0] * (epochs - 1)), 1 + int(where[1] * (steps_per_epoch - 1))
    record = replace(RECORD, epoch=epoch, epochs=epochs, step=step, steps_per_epoch=steps_per_epoch)
    record = replace(record, loss=loss, mean_loss=mean, lr=lr, loss_scale=scale, grad_norm=norm, tflops=tflops)
    line = format_loss_line(record)
    again = parse_loss_line(line)
    assert format_loss_line(again) == line
    assert (again.epoch, again.step, again.lr) == (epoch, step, pytest.approx(lr, rel=1e-7))
    percent, bar = re.match(r" *([\d.]+)% \|(█* *)\| ", format_progress_line(record)).groups()
    assert len(bar) == 50
    assert bar.count("█") == pytest.approx(float(percent) / 2, abs=1)
