"""``scripts/msrun_launcher.sh``: MindFormers' four forms, to the letter where people rely on it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import REPOSITORY, environment, finish, launch, nothing_left, wait_until
from programs import SLEEPER, WORDS, write

SCRIPT = REPOSITORY / "scripts/msrun_launcher.sh"
MSRUN = [sys.executable, "-m", "runformer.launch"]


def run(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        cwd=folder,
        env=environment({"PYTHON": sys.executable} | env),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def words(log: Path) -> dict:
    return json.loads(log.read_text().splitlines()[-1])


@pytest.mark.parametrize("count", [0, 3, 4, 5, 7, 8, 10])
def test_other_numbers_of_arguments_show_the_four_forms(tmp_path: Path, count: int) -> None:
    done = run(tmp_path, *["2"] * count)
    assert done.returncode == 1
    forms = [line.partition(f"bash {SCRIPT} ")[2].split() for line in done.stdout.splitlines()]
    assert [len(form) for form in forms] == [1, 2, 6, 9]
    assert {form[0] for form in forms} == {"EXECUTE_ORDER"}
    assert not list(tmp_path.iterdir())


def test_what_should_be_a_number_is_one(tmp_path: Path) -> None:
    for arguments, name in (
        (["x.py", "two"], "WORKER_NUM"),
        (["x.py", "2", "port", "logs", "True", "60"], "MASTER_PORT"),
        (["x.py", "4", "2", "127.0.0.1", "8118", "-1", "logs", "True", "60"], "NODE_RANK"),
    ):
        done = run(tmp_path, *arguments)
        assert done.returncode == 1
        assert f"error: {name} is not a number: " in done.stderr


def test_six_arguments(tmp_path: Path) -> None:
    write(tmp_path, "words.py", WORDS)
    write(tmp_path, "star.txt", "")
    order = """words.py  --text 'two words'
        "$HOME" `date` *.txt a=b=c"""
    done = run(tmp_path, order, "2", "18118", "logs", "True", "60", MF_LOG_SUFFIX="abc")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Running Command: msrun --worker_num 2 ")
    for rank in range(2):
        said = words(tmp_path / f"logs_abc/worker_{rank}.log")
        assert said["argv"] == ["--text", "two words", "$HOME", "`date`", "*.txt", "a=b=c"]
        env = said["env"]
        numbers = [env[name] for name in ("RANK", "RANK_ID", "LOCAL_RANK", "DEVICE_ID", "WORLD_SIZE", "RANK_SIZE")]
        assert numbers == [str(rank)] * 4 + ["2"] * 2
        assert env["PYTHONPATH"].split(os.pathsep)[0] == str(REPOSITORY)
        assert env["LOG_MF_PATH"] == str(tmp_path / "output/log_abc")
        assert (env["MASTER_ADDR"], env["GLOO_SOCKET_IFNAME"]) == ("127.0.0.1", "lo")
        assert said["torch"], "it was forked from a process that has torch"


def test_one_worker_simply_runs_and_a_program_of_its_own_too(tmp_path: Path) -> None:
    write(tmp_path, "words.py", WORDS)
    done = run(tmp_path, f"{sys.executable} words.py one", "1", "18118", "logs", "True", "60", LOG_MF_PATH="elsewhere")
    assert done.returncode == 0, done.stderr
    said = words(tmp_path / "logs/worker_0.log")
    assert said["argv"] == ["one"]
    assert said["env"]["LOG_MF_PATH"] == "elsewhere"
    assert not said["torch"]


def test_without_the_fork_server_each_worker_is_an_interpreter_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, "words.py", WORDS)
    done = launch(tmp_path, 2, "words.py", "a b", more=["--fork_server", "False", "--bind_core", "True"])
    assert done.exit_code == 0, done.err
    said = [words(tmp_path / f"logs/worker_{rank}.log") for rank in range(2)]
    assert [one["argv"] for one in said] == [["a b"]] * 2
    assert not any(one["torch"] for one in said)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= 2:
        assert not set(said[0]["cores"]) & set(said[1]["cores"]), "each has cores of its own"
    write(tmp_path, "wrong.py", "raise ValueError('as planned')\n")
    wrong = launch(tmp_path, 2, "wrong.py", more=["--fork_server", "False"])
    assert wrong.exit_code == 1
    assert "ValueError: as planned" in wrong.summary[1]


def test_a_taken_port_is_told_and_the_next_one_used(tmp_path: Path) -> None:
    write(tmp_path, "words.py", WORDS)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(tmp_path, "words.py", "2", str(port), "logs", "True", "60")
    assert done.returncode == 0, done.stderr
    assert f"msrun: port {port} of 127.0.0.1 is taken by process {os.getpid()} (" in done.stderr


def test_a_launch_in_the_background_can_be_asked_after_and_ended(tmp_path: Path) -> None:
    write(tmp_path, "sleeper.py", SLEEPER)
    with nothing_left(str(tmp_path)) as mark:
        done = run(tmp_path, "sleeper.py", "2", **mark)
        assert done.returncode == 0, done.stderr
        assert "msrun status output/msrun_log" in done.stdout
        log_dir = "output/msrun_log"
        wait_until(lambda: "asleep" in read(tmp_path / log_dir / "worker_1.log"), "the workers")
        asked = ask(tmp_path, "status", log_dir)
        assert asked.returncode == 0
        assert "running" in asked.stdout
        again = run(tmp_path, "sleeper.py", "2", **mark)
        assert again.returncode == 1
        assert "belongs to a job that is running" in again.stderr
        assert ask(tmp_path, "logs", log_dir, "--rank", "1").stdout == "asleep\n"
        waiting = subprocess.Popen([*MSRUN, "wait", log_dir], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE)
        assert ask(tmp_path, "stop", log_dir).returncode == 0
        assert waiting.wait(timeout=30) == 128 + signal.SIGTERM
        assert waiting.communicate()[0].decode().startswith("NODE_RANK 0")
        assert ask(tmp_path, "status", log_dir).returncode == 128 + signal.SIGTERM
        assert "told to end by SIGTERM" in ask(tmp_path, "report", log_dir).stdout
        assert ask(tmp_path, "stop", log_dir).stdout.strip() == f"{log_dir}: nothing is running here"


def ask(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MSRUN, *words], cwd=folder, env=environment(), capture_output=True, text=True, timeout=90, check=False
    )


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_the_process_that_a_user_signals_is_the_agent(tmp_path: Path) -> None:
    write(tmp_path, "sleeper.py", SLEEPER)
    with nothing_left(str(tmp_path)) as mark:
        process = subprocess.Popen(
            ["bash", str(SCRIPT), "sleeper.py", "2", "18118", "logs", "True", "60"],
            cwd=tmp_path,
            env=environment({"PYTHON": sys.executable} | mark),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: "asleep" in read(tmp_path / "logs/worker_1.log"), "the workers")
        process.send_signal(signal.SIGTERM)
        done = finish(process, tmp_path / "logs", time.monotonic())
        assert done.exit_code == 128 + signal.SIGTERM
        assert done.summary[0].startswith("told to end by SIGTERM")
