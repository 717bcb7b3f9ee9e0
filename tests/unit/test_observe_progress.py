"""The progress bar in a real process, on a pseudo-terminal and on a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

LOSS_LINE = (
    "{ Epoch:[  1/  1], step:[    3/    8], loss:[5.083/5.808], per_step_time: 20ms, lr: 0.0029242425, "
    "overflow cond: False, loss_scale: 1.0, global_norm: [1.7127533], train_throughput_per_npu: 0.007T"
)

RUN = """
import sys
from pathlib import Path
from runformer.observe import Progress, setup_logging

line, log_dir, enabled, fails = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "True", sys.argv[4] == "True"
logger = setup_logging(log_dir)
with Progress(total_steps=8, initial_step=2, enabled=enabled) as progress:
    for step in range(3, 9):
        logger.info(line.replace("step:[    3", f"step:[    {step}"))
        progress.advance(loss=5.0830812, tokens_per_second=12345.6)
        if step == 5:
            print("a plug-in [bold]prints[/bold]")
            if fails:
                raise SystemExit(3)
logger.info("after")
print("rich" in sys.modules)
"""


def command(log_dir: Path, enabled: bool, fails: bool = False) -> list[str]:
    return [sys.executable, "-c", RUN, LOSS_LINE, str(log_dir), str(enabled), str(fails)]


def on_terminal(arguments: list[str], columns: int, **environment: str) -> tuple[str, int]:
    """What a process writes to a terminal of that width, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "LOG_MF_PATH")}
    variables |= {"TERM": "xterm-256color", "PYTHONWARNINGS": "error", **environment}
    with subprocess.Popen(arguments, stdout=theirs, stderr=theirs, stdin=theirs, env=variables) as process:
        os.close(theirs)
        output = b""
        # Linux answers EIO, not an empty read, when the other end is closed.
        with contextlib.suppress(OSError):
            while chunk := os.read(ours, 1 << 16):
                output += chunk
    os.close(ours)
    return output.decode(), process.returncode


def without_escapes(output: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)


def loss_lines(text: str) -> list[str]:
    """Lines that hold a whole loss line, from its time stamp to its throughput, and nothing else."""
    lines = text.replace("\r", "\n").split("\n")
    return [line for line in lines if re.fullmatch(r"\d{4}-.* - INFO - \{ Epoch:.* 0\.007T", line)]


@pytest.mark.parametrize("columns", [60, 100, 300])
def test_on_a_terminal_whole_log_lines_stand_above_the_bar(tmp_path: Path, columns: int):
    output, code = on_terminal(command(tmp_path, enabled=True), columns)
    text = without_escapes(output)
    assert code == 0
    assert [int(re.search(r"step:\[ +(\d)", line)[1]) for line in loss_lines(text)] == [3, 4, 5, 6, 7, 8]
    assert "2/8" in text
    assert re.search(r"8/8 .*loss 5\.083 +12,346 tokens/s", text)
    assert "a plug-in " in text
    assert text.rstrip().endswith("True")


def test_the_bar_gives_the_cursor_back_when_the_run_fails(tmp_path: Path):
    output, code = on_terminal(command(tmp_path, enabled=True, fails=True), 100)
    assert code == 3
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    assert "5/8" in without_escapes(output)


@pytest.mark.parametrize(("enabled", "term"), [(False, "xterm-256color"), (True, "dumb")])
def test_without_a_bar_a_terminal_gets_plain_lines(tmp_path: Path, enabled: bool, term: str):
    output, code = on_terminal(command(tmp_path, enabled), 100, TERM=term)
    assert code == 0
    assert len(loss_lines(output)) == 6
    assert "\x1b" not in output
    assert "tokens/s" not in output


def test_a_pipe_gets_plain_lines_and_no_rich(tmp_path: Path):
    done = subprocess.run(command(tmp_path, enabled=True), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(loss_lines(done.stdout)) == 6
    assert done.stdout.splitlines()[-2].endswith(" - INFO - after")
    assert done.stdout.splitlines()[-1] == "False"
    assert "\x1b" not in done.stdout


def test_files_get_the_same_records_as_the_terminal(tmp_path: Path):
    on_terminal(command(tmp_path, enabled=True), 60)
    messages = [line.split(": ", 1)[1] for line in (tmp_path / "rank_0/info.log").read_text().splitlines()]
    assert messages[0] == LOSS_LINE
    assert len(messages) == 7
