"""Launches over several machines: how they meet, and how they end together."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import Launched, events, finish, nothing_left, wait_until, worker_pids
from machines import Machine, required_machines
from programs import RING, SLEEPER, WORDS, write
from tiny_task import TinyTask

MSRUN = [sys.executable, "-m", "runformer.launch"]


@pytest.fixture
def pair() -> Iterator[list[Machine]]:
    with required_machines(2) as made:
        yield made


def command(rank: int, *words: str, workers: int = 4, nodes: int = 2, more: tuple[str, ...] = ()) -> list[str]:
    """The launch of one of the machines; what is the same everywhere and MASTER_ADDR, NODE_RANK, no more."""
    numbers = ["--worker_num", str(workers), "--local_worker_num", str(workers // nodes)]
    place = ["--master_addr", "10.77.0.1", "--node_rank", str(rank), "--log_dir", f"logs_{rank}"]
    return [*MSRUN, *numbers, *place, "--join", "True", "--cluster_time_out", "60", *more, *words]


def start_all(folder: Path, hosts: list[Machine], *words: str, env: dict | None = None, **options) -> list[subprocess.Popen]:
    nodes = len(hosts)
    options.setdefault("workers", 2 * nodes)
    return [
        host.start(command(rank, *words, nodes=nodes, **options), folder, env) for rank, host in enumerate(hosts)
    ]


def finish_all(folder: Path, running: list[subprocess.Popen]) -> list[Launched]:
    return [finish(process, folder / f"logs_{rank}") for rank, process in enumerate(running)]


def summary(folder: Path, rank: int) -> list[str]:
    name = "status.json" if rank == 0 else f"status_{rank}.json"
    return json.loads((folder / f"logs_{rank}" / name).read_text())["summary"]


def test_ranks_go_by_machine(tmp_path: Path, pair: list[Machine]) -> None:
    write(tmp_path, "words.py", WORDS)
    for done in finish_all(tmp_path, start_all(tmp_path, pair, "words.py")):
        assert done.exit_code == 0, done.err
    for node in range(2):
        for local in range(2):
            rank = 2 * node + local
            said = json.loads((tmp_path / f"logs_{node}/worker_{rank}.log").read_text())["env"]
            assert (said["RANK"], said["LOCAL_RANK"], said["WORLD_SIZE"]) == (str(rank), str(local), "4")
            assert (said["MASTER_ADDR"], said["GLOO_SOCKET_IFNAME"]) == ("10.77.0.1", "eth0")
    assert (tmp_path / "logs_0/scheduler.log").exists()
    assert (tmp_path / "logs_1/scheduler_1.log").exists()


def test_the_store_listens_on_the_chosen_address_only(tmp_path: Path, pair: list[Machine]) -> None:
    write(tmp_path, "sleeper.py", SLEEPER)
    running = start_all(tmp_path, pair, "sleeper.py")
    worker_pids(tmp_path / "logs_1", 2, "_1")
    listening = subprocess.run(
        ["ip", "netns", "exec", pair[0].name, "cat", "/proc/net/tcp", "/proc/net/tcp6"],
        capture_output=True, text=True, timeout=30, check=True,
    ).stdout  # fmt: skip
    running[0].send_signal(signal.SIGTERM)
    assert [done.exit_code for done in finish_all(tmp_path, running)] == [143, 143]
    rows = [line.split() for line in listening.splitlines()]
    local = {row[1] for row in rows if len(row) > 3 and row[3] == "0A"}
    assert local == {"01004D0A:1FB6"}, "10.77.0.1 port 8118, and nothing else"


def test_training_over_two_machines_is_the_single_process(tiny: TinyTask, pair: list[Machine]) -> None:
    alone = tiny.run("--output_dir", "one", "--batch_size", "4")
    assert alone.returncode == 0, alone.stderr
    words = ["run_mindformer.py", "--config", "config.yaml", "--use_parallel", "True", "--batch_size", "1"]
    words += ["--parallel_config.data_parallel", "4", "--output_dir", "many"]
    for done in finish_all(tiny.folder, start_all(tiny.folder, pair, *words)):
        assert done.exit_code == 0, done.err
    for ours, theirs in zip(tiny.rows("many"), tiny.rows("one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


@pytest.mark.parametrize(("fault", "code"), [("raise", 1), ("SIGKILL", 137), ("SIGSTOP", 147), ("leave", 1)])
@pytest.mark.parametrize("who", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_fault_on_one_machine_is_named_on_both(
    tmp_path: Path, pair: list[Machine], fault: str, code: int, who: int
) -> None:
    write(tmp_path, "ring.py", RING)
    with nothing_left(str(tmp_path)) as mark:
        ended = finish_all(tmp_path, start_all(tmp_path, pair, "ring.py", fault, str(who), env=mark))
    for node, done in enumerate(ended):
        assert done.exit_code == code, done.err
        assert f"rank {who} on" in summary(tmp_path, node)[0]
        assert f"NODE_RANK {who // 2}" in summary(tmp_path, node)[0]


def test_a_missing_machine_is_named(tmp_path: Path, pair: list[Machine]) -> None:
    write(tmp_path, "words.py", WORDS)
    running = pair[0].start(command(0, "words.py", more=("--cluster_time_out", "7")), tmp_path)
    done = finish(running, tmp_path / "logs_0")
    assert done.exit_code == 124
    said = done.err.splitlines()
    assert "1 of 2 machines are here; missing: NODE_RANK 1 (for 5 s; giving up after 7 s)" in said[0]
    assert "missing: NODE_RANK 1, after 7 s (CLUSTER_TIME_OUT)" in done.err
    assert not events(tmp_path / "logs_0", "worker_start")


def test_a_first_machine_that_does_not_come_is_named(tmp_path: Path, pair: list[Machine]) -> None:
    write(tmp_path, "words.py", WORDS)
    running = pair[1].start(command(1, "words.py", more=("--cluster_time_out", "2")), tmp_path)
    done = finish(running, tmp_path / "logs_1")
    assert done.exit_code == 124
    assert "NODE_RANK 0 does not answer at 10.77.0.1 port 8118, after 2 s" in done.err


def test_machines_that_do_not_belong_are_refused_and_the_job_goes_on(tmp_path: Path, pair: list[Machine]) -> None:
    write(tmp_path, "sleeper.py", SLEEPER)
    write(tmp_path, "words.py", WORDS)
    first = pair[0].start(command(0, "sleeper.py"), tmp_path)
    wait_until(lambda: (tmp_path / "logs_0/status.json").exists(), "the first machine")
    refusals = {
        "WORKER_NUM is 8 here and 4 there": command(1, "sleeper.py", workers=8),
        "the command is words.py here and sleeper.py there": command(1, "words.py"),
        "NODE_RANK 0 is 10.77.0.1 port 8118 already": command(0, "sleeper.py"),
    }
    for expected, words in refusals.items():
        stranger = [word.replace("logs_", "strange_") for word in words]
        done = finish(pair[1].start(stranger, tmp_path), tmp_path)
        assert done.exit_code == 1, done.err
        assert expected in done.err
    second = pair[1].start(command(1, "sleeper.py"), tmp_path)
    worker_pids(tmp_path / "logs_1", 2, "_1")
    late = [word.replace("logs_", "strange_") for word in command(1, "sleeper.py")]
    done = finish(pair[1].start(late, tmp_path), tmp_path)
    assert "NODE_RANK 1 is " in done.err
    assert "already, in the job at 10.77.0.1 port 8118" in done.err
    first.send_signal(signal.SIGTERM)
    ended = [finish(process, tmp_path) for process in (first, second)]
    assert [one.exit_code for one in ended] == [143, 143]
    assert "a machine was refused: " in ended[0].err


STRANGER = """
from datetime import timedelta
from torch.distributed import TCPStore
store = TCPStore("10.77.0.1", 8118, None, False, timedelta(seconds=10), wait_for_workers=False)
for key in ("news", "node/0", "node/1", "claim/1", "0123456789abcdef/news", "default_pg/0//0//0"):
    store.set(key, "{'a': 'stranger'}")
"""


def test_a_stranger_without_the_nonce_is_not_heard(tmp_path: Path, pair: list[Machine]) -> None:
    write(tmp_path, "ring.py", RING)
    first = pair[0].start(command(0, "ring.py", "exit", "3"), tmp_path)
    wait_until(lambda: (tmp_path / "logs_0/status.json").exists(), "the first machine")
    time.sleep(1)
    assert finish(pair[1].start([sys.executable, "-c", STRANGER], tmp_path), tmp_path).exit_code == 0
    second = pair[1].start(command(1, "ring.py", "exit", "3"), tmp_path)
    ended = [finish(process, tmp_path) for process in (first, second)]
    assert [done.exit_code for done in ended] == [3, 3], "all four met, and rank 3 ended them"


def test_a_changed_task_file_is_noticed(tiny: TinyTask, pair: list[Machine]) -> None:
    other = tiny.folder / "other"
    other.mkdir()
    (other / "config.yaml").write_text((tiny.folder / "config.yaml").read_text() + "# changed\n")
    words = ["run_mindformer.py", "--config", "config.yaml"]
    first = pair[0].start(command(0, *words, more=("--cluster_time_out", "20")), tiny.folder)
    done = finish(pair[1].start(command(1, *words), other), other)
    assert done.exit_code == 1
    assert "the file config.yaml is " in done.err
    first.send_signal(signal.SIGTERM)
    assert finish(first, tiny.folder).exit_code == 143


def test_machines_without_numbers_take_them_as_they_come(tmp_path: Path) -> None:
    write(tmp_path, "words.py", WORDS)
    with required_machines(3) as hosts:
        running = []
        for number, host in enumerate(hosts):
            words = [word.replace("logs_-1", f"logs_{number}") for word in command(-1, "words.py", workers=3, nodes=3)]
            running.append(host.start(words, tmp_path))
        for process in running:
            done = finish(process, tmp_path)
            assert done.exit_code == 0, done.err
    ranks = {path.name: json.loads(path.read_text())["env"]["RANK"] for path in tmp_path.glob("logs_*/worker_*.log")}
    assert ranks == {f"worker_{rank}.log": str(rank) for rank in range(3)}
    assert (tmp_path / "logs_0/worker_0.log").exists(), "the one with MASTER_ADDR is the first"


@pytest.mark.parametrize(
    "how", ["cable", *(pytest.param(how, marks=pytest.mark.slow) for how in ("one way", "power"))]
)
def test_a_lost_machine_ends_the_job_on_both_sides(tmp_path: Path, pair: list[Machine], how: str) -> None:
    write(tmp_path, "ring.py", RING)
    with nothing_left(str(tmp_path), seconds=8) as mark:
        running = start_all(tmp_path, pair, "ring.py", "none", "-1", env=mark)
        worker_pids(tmp_path / "logs_0", 2)
        worker_pids(tmp_path / "logs_1", 2, "_1")
        time.sleep(1.5)
        if how == "cable":
            pair[1].unplug()
        elif how == "one way":
            pair[1].drop("OUTPUT")
        else:
            pair[1].power_off()
        ended = finish_all(tmp_path, running)
    assert ended[0].exit_code == 1
    text = "\n".join(summary(tmp_path, 0))
    assert "NODE_RANK 1" in text
    assert "was lost" in text
    if how != "power":
        assert ended[1].exit_code == 1, ended[1].err
        assert "NODE_RANK 0" in "\n".join(summary(tmp_path, 1))


def test_a_launcher_that_is_killed_ends_the_others(tmp_path: Path, pair: list[Machine]) -> None:
    write(tmp_path, "ring.py", RING)
    with nothing_left(str(tmp_path)) as mark:
        running = start_all(tmp_path, pair, "ring.py", "none", "-1", env=mark)
        worker_pids(tmp_path / "logs_0", 2)
        worker_pids(tmp_path / "logs_1", 2, "_1")
        time.sleep(1.5)
        running[1].kill()
        ended = finish_all(tmp_path, running)
    assert ended[0].exit_code == 1
    assert "NODE_RANK 1" in summary(tmp_path, 0)[0]
    assert "was lost" in summary(tmp_path, 0)[0]


def test_a_slow_and_lossy_network_ends_nothing(tiny: TinyTask, pair: list[Machine]) -> None:
    pair[1].slow_down("20mbit")
    pair[1].drop("INPUT", "-m", "statistic", "--mode", "random", "--probability", "0.02")
    words = ["run_mindformer.py", "--config", "config.yaml", "--use_parallel", "True", "--batch_size", "1"]
    words += ["--parallel_config.data_parallel", "2"]
    for done in finish_all(tiny.folder, start_all(tiny.folder, pair, *words, workers=2)):
        assert done.exit_code == 0, done.err
    assert len(tiny.rows()) == 20


@pytest.mark.slow
def test_a_job_over_two_machines_is_started_again(tiny: TinyTask, pair: list[Machine]) -> None:
    words = ["run_mindformer.py", "--config", "config.yaml", "--use_parallel", "True", "--batch_size", "1"]
    words += ["--parallel_config.data_parallel", "2", "--epochs", "30"]
    running = start_all(tiny.folder, pair, *words, workers=2, more=("--max_restarts", "2"))
    metrics = tiny.folder / "output/training.jsonl"
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 20, "some steps")
    pid = worker_pids(tiny.folder / "logs_1", 1, "_1")[1]
    subprocess.run(["kill", "-KILL", str(pid)], check=True, timeout=10)
    ended = finish_all(tiny.folder, running)
    assert [done.exit_code for done in ended] == [0, 0], ended[0].err
    assert [row["outcome"] for row in events(tiny.folder / "logs_1", "verdict", "_1")] == ["restart", "succeeded"]
    assert len(tiny.rows()) == 300
