"""The commands of docs/multi_node.md, run as they stand, on a task that takes seconds."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from launching import REPOSITORY, environment, finish, nothing_left
from machines import required_machines
from tiny_task import TinyTask

PAGE = (REPOSITORY / "docs/multi_node.md").read_text()
BINARIES = Path(sys.executable).parent


def lines(start: str) -> list[str]:
    """The lines of bash blocks that begin so."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.startswith(start)]


@pytest.fixture
def task(tiny: TinyTask) -> TinyTask:
    """``X.yaml``: as many copies as there are processes."""
    text = (tiny.folder / "config.yaml").read_text()
    text = text.replace("use_parallel: False", "use_parallel: True\nparallel: {parallel_mode: 0}")
    (tiny.folder / "X.yaml").write_text(text.replace("batch_size: 2", "batch_size: 1"))
    for name in ("scripts", "run_mindformer.py"):
        (tiny.folder / name).symlink_to(REPOSITORY / name)
    return tiny


def run(folder: Path, line: str, code: int = 0, **more: str) -> str:
    done = subprocess.run(
        shlex.split(line, comments=True),
        cwd=folder, env=shell(more), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, line + done.stdout + done.stderr
    return done.stdout


def shell(more: dict[str, str]) -> dict[str, str]:
    return environment({"PATH": f"{BINARIES}:{os.environ['PATH']}"} | more)


def test_one_machine(task: TinyTask) -> None:
    default, two, custom, _ = lines("bash scripts")[:4]
    (msrun,) = lines("msrun --worker_num")
    with nothing_left(str(task.folder)) as mark:
        for line, workers in ((default, 8), (two, 2), (custom, 2), (msrun, 2)):
            run(task.folder, line, **mark)
            run(task.folder, "msrun wait output/msrun_log")
            assert len(list((task.folder / "output/msrun_log").glob("worker_*.log"))) >= workers
            assert task.rows()[-1]["epoch"] == 2
    asking = [line for line in lines("msrun ") if "LOG_DIR" not in line and "worker_num" not in line]
    said = [run(task.folder, line) for line in asking if "--help" not in line]
    assert [line.split()[1] for line in asking] == ["status", "logs", "wait", "stop", "report"]
    assert "succeeded" in said[0]
    assert "Epoch:[" in said[1]
    assert "nothing is running here" in said[3]
    assert "all workers ended well" in said[4]


def test_two_machines(task: TinyTask) -> None:
    first, second = lines("bash scripts")[4:6]
    with required_machines(2) as hosts, nothing_left(str(task.folder)) as mark:
        running = [
            host.start(shlex.split(line.replace("10.0.0.1", "10.77.0.1"), comments=True), task.folder, shell(mark))
            for host, line in zip(hosts, (first, second), strict=True)
        ]
        for process in running:
            done = finish(process, task.folder)
            assert done.exit_code == 0, done.err
    assert [row["tokens"] for row in task.rows()] == [16 * 16] * 2


@pytest.mark.slow
def test_torchrun_on_two_machines(task: TinyTask) -> None:
    (line,) = re.findall(r"\| `(torchrun .*?)` \|", PAGE)
    line = line.replace("10.0.0.1", "10.77.0.1").replace("--nproc-per-node 8", "--nproc-per-node 2")
    with required_machines(2) as hosts, nothing_left(str(task.folder)) as mark:
        names = {"GLOO_SOCKET_IFNAME": "eth0"}  # torchrun leaves that to the user; msrun does not
        running = [
            host.start(
                shlex.split(line.replace("--node-rank 0", f"--node-rank {rank}")), task.folder, shell(mark | names)
            )
            for rank, host in enumerate(hosts)
        ]
        for process in running:
            done = finish(process, task.folder)
            assert done.exit_code == 0, done.err
    assert [row["tokens"] for row in task.rows()] == [4 * 16] * 10


def test_every_flag_and_exit_code_that_the_page_names_exists() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "runformer.launch", "--help"],
        env=environment(), capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    ours = {"--fork_server", "--hang_timeout", "--max_restarts", "--grace_period", "--order"}
    assert ours <= set(re.findall(r"--\w+", PAGE))
    assert ours <= set(re.findall(r"--\w+", shown))
