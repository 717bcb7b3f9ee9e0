"""Any worker that fails ends the job, with its own exit code and its name; nothing is left of it."""

from __future__ import annotations

import os
import pty
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from launching import environment, events, finish, flags, launch, marked, nothing_left, start, wait_until, worker_pids
from programs import RING, SLEEPER, write

FAULTS = {
    "raise": (1, ["rank 1 on", "failed with exit code 1", "ValueError: the planted fault", "ring.py:", "in hurt"]),
    "exit": (3, ["rank 1 on", "failed with exit code 3"]),
    "leave": (1, ["rank 1 on", "left too early", "it ended with exit code 0 while other ranks still waited for it"]),
    "SIGKILL": (137, ["rank 1 on", "was ended by SIGKILL", "hint: SIGKILL often means out of memory"]),
    "SIGSEGV": (139, ["rank 1 on", "was ended by SIGSEGV", "ring.py"]),
    "SIGSTOP": (147, ["rank 1 on", "was stopped (SIGSTOP)", "hint: something outside stopped it"]),
    "sigterm-ignored": (1, ["rank 1 on", "ValueError: the planted fault"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_cause_is_named_and_its_exit_code_kept(tmp_path: Path, fault: str) -> None:
    code, expected = FAULTS[fault]
    program = RING.replace('dist.init_process_group("gloo")', "") if fault == "sigterm-ignored" else RING
    if fault == "sigterm-ignored":
        program = program.replace("dist.all_reduce(torch.ones(1))", "")
    write(tmp_path, "ring.py", program)
    with nothing_left(str(tmp_path)) as mark:
        done = launch(tmp_path, 3, "ring.py", fault, "1", env=mark)
    assert done.exit_code == code, done.err
    text = "\n".join(done.summary)
    assert [part for part in expected if part not in text] == []
    assert len(done.summary) <= 15
    assert "rank 1 has come to its fault" in done.log(1)
    if fault != "sigterm-ignored":
        assert "rank 1 has come to its fault" in text or fault in ("leave", "SIGSEGV")
    said = done.err.splitlines()
    assert said[-len(done.summary) :] == [f"msrun: {line}" for line in done.summary], "the summary comes last"
    (verdict,) = done.events("verdict")
    assert (verdict["outcome"], verdict["cause"]["rank"]) == ("failed", 1)
    (end,) = done.events("end")
    assert end["exit_code"] == code


def test_the_report_tells_the_story_afterwards(tmp_path: Path) -> None:
    write(tmp_path, "ring.py", RING)
    done = launch(tmp_path, 2, "ring.py", "raise", "0")
    report = subprocess.run(
        [sys.executable, "-m", "runformer.launch", "report", "logs"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert "rank 0 failed: ValueError: the planted fault" in report
    assert "rank 0 exited with code 1" in report
    assert done.summary[0].split(" after")[0] in report
    assert "ring.py:" in report


def test_a_script_that_is_wrong_from_the_start(tmp_path: Path) -> None:
    write(tmp_path, "wrong.py", "import no_such_module\n")
    done = launch(tmp_path, 2, "wrong.py", more=["--max_restarts", "3"])
    assert done.exit_code == 1
    assert "ModuleNotFoundError: No module named 'no_such_module'" in "\n".join(done.summary)
    assert len(done.events("verdict")) == 1, "nothing had been done, so nothing was started again"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]
)
def test_a_launcher_that_is_told_to_end_takes_all_with_it(tmp_path: Path, number: signal.Signals, code: int) -> None:
    write(tmp_path, "sleeper.py", SLEEPER)
    with nothing_left(str(tmp_path)) as mark:
        process = start([*flags(2, tmp_path / "logs"), "sleeper.py"], tmp_path, mark)
        asleep(tmp_path)
        process.send_signal(number)
        done = finish(process, tmp_path / "logs")
    assert done.exit_code == code
    assert done.summary[0].startswith(f"told to end by {number.name}")


def test_workers_that_do_not_listen_are_killed_in_the_end(tmp_path: Path) -> None:
    write(tmp_path, "sleeper.py", SLEEPER)
    with nothing_left(str(tmp_path)) as mark:
        process = start([*flags(2, tmp_path / "logs"), "sleeper.py", "deaf"], tmp_path, mark)
        asleep(tmp_path)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)  # who asks twice does not want to wait
        done = finish(process, tmp_path / "logs")
    assert done.exit_code == 143
    assert {row["signal"] for row in done.events("worker_end")} == {signal.SIGKILL}


def asleep(folder: Path) -> None:
    logs = [folder / f"logs/worker_{rank}.log" for rank in range(2)]
    wait_until(lambda: all(log.exists() and log.read_text() for log in logs), "the workers")


def test_a_launcher_that_is_killed_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, "sleeper.py", SLEEPER)
    kill_at_random(tmp_path, times=8, seed=5)


@pytest.mark.slow
def test_fifty_killed_launchers_leave_nothing(tmp_path: Path) -> None:
    write(tmp_path, "sleeper.py", SLEEPER)
    kill_at_random(tmp_path, times=50, seed=6)


def kill_at_random(folder: Path, times: int, seed: int) -> None:
    draw = random.Random(seed)
    for number in range(times):
        with nothing_left(f"{folder}-{number}", seconds=2) as mark:
            process = start([*flags(2, folder / f"logs_{number}"), "sleeper.py"], folder, mark)
            time.sleep(draw.uniform(0, 2.5))
            process.kill()
            process.communicate(timeout=30)


def test_the_fork_server_may_be_killed_as_well(tmp_path: Path) -> None:
    write(tmp_path, "sleeper.py", SLEEPER)
    with nothing_left(str(tmp_path)) as mark:
        process = start([*flags(2, tmp_path / "logs"), "sleeper.py"], tmp_path, mark)
        asleep(tmp_path)
        (server,) = psutil.Process(process.pid).children()
        server.kill()
        done = finish(process, tmp_path / "logs")
    assert done.exit_code == 137
    assert "the process that holds this machine's workers was killed" in done.summary[1]


def test_a_terminal_that_is_closed_ends_the_job(tmp_path: Path) -> None:
    write(tmp_path, "sleeper.py", SLEEPER)
    with nothing_left(str(tmp_path)) as mark:
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(tmp_path)
            command = [*flags(2, tmp_path / "logs"), "sleeper.py"]
            os.execve(command[0], command, environment(mark))
        asleep(tmp_path)
        os.close(terminal)
        os.waitpid(pid, 0)
    assert events(tmp_path / "logs", "end")[0]["exit_code"] == 129


def test_a_killed_launch_in_the_background_says_so(tmp_path: Path) -> None:
    write(tmp_path, "sleeper.py", SLEEPER)
    with nothing_left(str(tmp_path)) as mark:
        command = [word if word != "True" else "False" for word in flags(2, tmp_path / "logs")]
        finish(start([*command, "sleeper.py"], tmp_path, mark), tmp_path / "logs")
        asleep(tmp_path)
        (launcher,) = (process for process in marked(str(tmp_path)) if process.pid == status_pid(tmp_path))
        launcher.kill()
        launcher.wait(timeout=10)
        asked = subprocess.run(
            [sys.executable, "-m", "runformer.launch", "status", "logs"],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert asked.returncode == 1
    assert "is gone and could not say why" in asked.stdout


def status_pid(folder: Path) -> int:
    from runformer.launch.status import read_status

    return read_status(folder / "logs/status.json").pid


HOG = """
import os, time
if os.environ["RANK"] == "1":
    hoard = []
    while True:
        hoard.append(bytearray(os.urandom(1 << 20)) * 32)
time.sleep(600)
"""


def test_the_kernels_word_on_a_rank_that_took_too_much_memory(tmp_path: Path) -> None:
    group = next(iter(sorted(Path("/sys/fs/cgroup").glob("memory"))), Path("/sys/fs/cgroup")) / f"runformer_{os.getpid()}"
    try:
        group.mkdir()
        limit = next(path for path in (group / "memory.max", group / "memory.limit_in_bytes") if path.exists())
    except (OSError, StopIteration):
        pytest.skip("no control group with a memory limit can be made here")
    try:
        limit.write_text(str(700 << 20))
        write(tmp_path, "hog.py", HOG)
        into = f"echo $$ > {group}/cgroup.procs; exec "
        with nothing_left(str(tmp_path)) as mark:
            command = shlex.join([*flags(2, tmp_path / "logs"), "hog.py"])
            done = finish(start(["bash", "-c", into + command], tmp_path, mark), tmp_path / "logs")
        assert done.exit_code == 137, done.err
        assert done.summary[0].startswith("rank 1 on ")
        assert "hint: out of memory: the control group counts 1 kill" in "\n".join(done.summary)
    finally:
        group.rmdir()


def test_a_worker_that_dies_while_others_start(tmp_path: Path) -> None:
    write(tmp_path, "early.py", "import os, sys\nsys.exit(5 if os.environ['RANK'] == '0' else 0)\n")
    done = launch(tmp_path, 8, "early.py")
    assert done.exit_code == 5
    assert done.events("verdict")[0]["cause"]["rank"] == 0
    assert len(worker_pids(tmp_path / "logs", 8)) == 8
