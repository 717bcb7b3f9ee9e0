"""Console lines in MindFormers' form, files for each rank, and nothing left behind."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runformer.errors import RunformerError
from runformer.observe import close_logging, setup_logging
from runformer.observe.log import ConsoleHandler

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("LOG_MF_PATH", raising=False)
    yield
    close_logging()


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_the_console_line_of_the_original(monkeypatch, tmp_path: Path, capsys, oracle_dir: Path):
    """The same text before the message as in a real MindFormers log, but for time, file and line."""
    monkeypatch.chdir(tmp_path)
    reference = lines(oracle_dir / "llama_pretrain/reference_log.txt")[0]
    setup_logging(Path("output/log")).info(reference.split(" - INFO - ", 1)[1])
    pattern = rf"({TIME}) - mindformers\./output/log\[(.+):(\d+)\] - INFO - (.*)"
    ours, theirs = re.fullmatch(pattern, capsys.readouterr().out.strip()), re.fullmatch(pattern, reference)
    assert ours is not None
    assert theirs is not None
    assert ours[4] == theirs[4]
    assert ours[2] == "tests/unit/test_observe_log.py"


def test_an_absolute_folder_is_shown_as_it_is(tmp_path: Path, capsys):
    folder = tmp_path / "100%s"
    setup_logging(folder).warning("careful")
    assert f" - mindformers{folder}[" in capsys.readouterr().out


def test_files_of_a_rank(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RUNFORMER_WORKER_LOG", "1")
    logger = setup_logging(tmp_path, rank=3)
    logger.info("fine: 100 %% █")
    logging.getLogger("runformer.train").error("step %d failed", 7)
    logger.debug("too much")
    info, error = lines(tmp_path / "rank_3/info.log"), lines(tmp_path / "rank_3/error.log")
    here = r"\[tests/unit/test_observe_log\.py:\d+\] test_files_of_a_rank"
    assert re.fullmatch(rf"\[INFO\] {TIME} {here}: fine: 100 %% █", info[0])
    assert re.fullmatch(rf"\[ERROR\] {TIME} {here}: step 7 failed", info[1])
    assert error == [info[1]]
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_second_run_appends(tmp_path: Path):
    for _ in range(2):
        setup_logging(tmp_path).info("hello")
        close_logging()
    assert len(lines(tmp_path / "rank_0/info.log")) == 2


def test_setting_up_twice_prints_once(tmp_path: Path, capsys):
    first = setup_logging(tmp_path / "old")
    second = setup_logging(tmp_path / "new")
    second.info("once")
    assert first is second
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert lines(tmp_path / "old/rank_0/info.log") == []
    assert len(lines(tmp_path / "new/rank_0/info.log")) == 1


@pytest.mark.parametrize("own_file", [False, True])
def test_of_several_ranks_on_a_terminal_one_speaks(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, own_file: bool
):
    if own_file:
        monkeypatch.setenv("RUNFORMER_WORKER_LOG", "1")
    else:
        monkeypatch.delenv("RUNFORMER_WORKER_LOG", raising=False)
    logger = setup_logging(tmp_path, rank=1, notices=["a notice is rank 0's"])
    logger.info("quiet")
    logger.warning("loud")
    printed = capsys.readouterr().out
    assert "loud" in printed
    assert ("quiet" in printed) == own_file
    assert [line.rpartition(": ")[2] for line in lines(tmp_path / "rank_1/info.log")] == ["quiet", "loud"]


def test_closing_gives_the_logger_back(tmp_path: Path):
    logger = logging.getLogger("runformer")
    before = list(logger.handlers)
    setup_logging(tmp_path)
    close_logging()
    assert (logger.handlers, logger.propagate, logger.level) == (before, True, logging.NOTSET)


def test_other_libraries_stay_out(tmp_path: Path, capsys):
    setup_logging(tmp_path)
    logging.getLogger("transformers").error("noise")
    logging.getLogger().error("noise")
    assert capsys.readouterr().out == ""
    assert lines(tmp_path / "rank_0/info.log") == []


def test_the_root_logger_does_not_print_again(tmp_path: Path, capsys):
    seen = io.StringIO()
    root = logging.StreamHandler(seen)
    logging.getLogger().addHandler(root)
    try:
        setup_logging(tmp_path).info("once")
    finally:
        logging.getLogger().removeHandler(root)
    assert seen.getvalue() == ""
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_environment_overrides_the_folder(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("LOG_MF_PATH", str(tmp_path / "there"))
    setup_logging(tmp_path / "here").info("where?")
    assert not (tmp_path / "here").exists()
    assert len(lines(tmp_path / "there/rank_0/info.log")) == 1


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunformerError, match=r"cannot write log files in .*rank_0: Not a directory") as caught:
        setup_logging(tmp_path / "file/log")
    assert caught.value.hint is not None
    assert "LOG_MF_PATH" in caught.value.hint


def test_files_rotate(monkeypatch, tmp_path: Path):
    monkeypatch.setattr("runformer.observe.log._MAX_FILE_BYTES", 2000)
    logger = setup_logging(tmp_path)
    for step in range(300):
        logger.info("step %d", step)
    names = sorted(path.name for path in (tmp_path / "rank_0").glob("info.log*"))
    assert names == ["info.log", *(f"info.log.{i}" for i in range(1, 6))]
    assert all(path.stat().st_size <= 2000 for path in (tmp_path / "rank_0").iterdir())
    assert lines(tmp_path / "rank_0/info.log")[-1].endswith("step 299")


def test_a_terminal_without_these_letters_gets_question_marks(monkeypatch, tmp_path: Path):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    setup_logging(tmp_path).info("|██  |")
    assert raw.getvalue().decode("ascii").endswith(" - INFO - |??  |\n")
    assert lines(tmp_path / "rank_0/info.log")[0].endswith("|██  |")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_file_and_not_the_run(tmp_path: Path, capsys):
    folder = tmp_path / "rank_0"
    folder.mkdir()
    (folder / "info.log").symlink_to("/dev/full")
    logger = setup_logging(tmp_path)
    for _ in range(3):
        logger.info("going on")
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert err == f"runformer: no more records in {folder / 'info.log'}: No space left on device\n"


def test_a_bug_in_a_log_call_is_not_taken_for_a_full_disk(tmp_path: Path, capsys):
    logger = setup_logging(tmp_path)
    logger.info("%d", "not a number")
    logger.info("still here")
    assert "--- Logging error ---" in capsys.readouterr().err
    assert len(lines(tmp_path / "rank_0/info.log")) == 1


READER_GONE = """
import sys
from pathlib import Path
from runformer.observe import setup_logging

logger = setup_logging(Path(sys.argv[1]))
logger.info("first")
sys.stdin.readline()
for step in range(5):
    logger.info("step %d", step)
"""


def test_a_reader_that_goes_away_does_not_stop_the_run(tmp_path: Path):
    """As in ``python run_mindformer.py … | head -1``."""
    with subprocess.Popen(
        [sys.executable, "-c", READER_GONE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout.readline().endswith("first\n")
        process.stdout.close()
        process.stdin.write("go on\n")
        process.stdin.flush()
        errors = process.stderr.read()
        code = process.wait()
    assert errors == "runformer: standard output is gone (Broken pipe): records go to info.log only\n"
    assert code == 0
    assert [line.rsplit(" ", 1)[1] for line in lines(tmp_path / "rank_0/info.log")] == ["first", *"01234"]


def test_the_room_imports_nothing_heavy():
    code = "import sys, runformer.observe; print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout == "[]\n"


def test_exported_names_are_those_announced():
    import runformer.observe as room

    public = {name for name, value in vars(room).items() if not name.startswith("_") and not hasattr(value, "__path__")}
    modules = {"error_file", "evaluation", "log", "loss_line", "metrics", "progress", "pulse", "utilization"}
    assert public - modules == set(room.__all__)
    assert room.__all__ == sorted(room.__all__)
    assert issubclass(ConsoleHandler, logging.Handler)
