"""The command line of msrun, and what the launcher reads and writes."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runformer.cli.msrun import main, parse
from runformer.errors import LaunchError, UsageError
from runformer.launch import address
from runformer.launch.command import find_command, split_order
from runformer.launch.console import AlarmFilter, Console, Tail
from runformer.launch.environment import share_out
from runformer.launch.events import EventLog, read_events
from runformer.launch.facts import job_facts
from runformer.launch.failure import Failure, last_lines, read_error
from runformer.launch.judge import Verdict
from runformer.launch.layout import Layout
from runformer.launch.memory import OutOfMemoryWatch, oom_files
from runformer.launch.options import LaunchOptions
from runformer.launch.report import report_lines
from runformer.launch.stacks import innermost, outsider
from runformer.launch.status import Status, StatusFile, read_all, read_status
from runformer.launch.summary import summarise
from runformer.observe.error_file import record_error
from runformer.observe.pulse import SLOT_BYTES, Pulse, pulse


def test_the_originals_flags_and_defaults() -> None:
    options, notices = parse(["run.py", "--config", "x.yaml"])
    assert options == LaunchOptions(command=("run.py", "--config", "x.yaml"))
    assert notices == []
    assert (options.world_size, options.local_world_size, options.master_port) == (8, 8, 8118)
    options, notices = parse(
        [
            *("--worker_num", "4", "--local_worker_num", "2", "--node_rank", "1", "--join", "True"),
            *("--bind_core", "True", "--tail_worker_log", "0,3", "--sim_level", "1", "--rank_table_file", "t.json"),
            *("--worker_log_name", "w_{ip}", "run.py", "--join"),
        ]
    )
    assert (options.nodes, options.node_rank, options.join, options.bind_core) == (2, 1, True, True)
    assert (options.tail, options.command) == ((0, 3), ("run.py", "--join"))
    assert notices == ["without effect here: --sim_level, --rank_table_file"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "there is no script to run"),
        ("--worker_num 0 x.py", "must be a whole number from 1"),
        ("--worker_num 2 x.py", "--local_worker_num is 8, more than the 2 of --worker_num"),
        ("--worker_num 6 --local_worker_num 4 x.py", "not a multiple"),
        ("--worker_num 4 --local_worker_num 2 --node_rank 2 x.py", "there are 2 machines, from 0"),
        ("--join yes x.py", "must be True or False, not 'yes'"),
        ("--tail_worker_log 1;2 x.py", "must be ranks such as 0,3"),
        ("--bind_core {} x.py --bind_core [1]", ""),
        ("--bind_core [1] x.py", 'a JSON such as {"device0": ["0-3"]}'),
        ("--hang_timeout never x.py", "must be a number of seconds"),
        ("--no_such_flag 1 x.py", "unrecognized arguments"),
    ],
)
def test_mistakes_on_the_command_line(line: str, expected: str) -> None:
    if not expected:
        parse(line.split())
        return
    with pytest.raises(UsageError) as caught:
        parse(line.split())
    assert expected in str(caught.value)


def test_cores_as_the_original_takes_them() -> None:
    options, _ = parse(["--bind_core", '{"device0": ["0-2", "8"], "device1": ["3-3"]}', "x.py"])
    assert options.bind_core == {0: (0, 1, 2, 8), 1: (3,)}
    assert share_out(range(6), 2) == [(0, 1, 2), (3, 4, 5)]
    assert share_out(range(2), 8) == []


def test_a_usage_error_has_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--join", "yes", "x.py"]) == 2
    assert "error: argument --join: must be True or False" in capsys.readouterr().err


def test_a_command_is_split_once_and_nothing_is_expanded() -> None:
    assert split_order("run.py 'a b' \"$HOME\" `x` *.py\n  --k=v") == ("run.py", "a b", "$HOME", "`x`", "*.py", "--k=v")
    for wrong in ("run.py 'open", "   "):
        with pytest.raises(UsageError):
            split_order(wrong)


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), min_size=1, max_size=5))
def test_quoted_words_come_back(words: list[str]) -> None:
    import shlex

    assert split_order(shlex.join(words)) == tuple(words)


def test_where_a_script_is_found(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    assert find_command(("mine.py", "a")).script == tmp_path / "mine.py"
    assert find_command(("run_mindformer.py",)).script == repository / "run_mindformer.py"
    with pytest.raises(UsageError, match="no-such-program: there is no such program"):
        find_command(("no-such-program", "x"))
    program = find_command(("python", "mine.py"))
    assert program.script is None
    assert program.argv() == ["python", "mine.py"]
    with pytest.raises(UsageError, match=r"no\.py: there is no such script here"):
        find_command(("no.py",))


def test_a_taken_port_names_its_holder_and_gives_the_next() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError) as caught:
            address.listen("127.0.0.1", port, any_port=False)
        assert f"port {port} of 127.0.0.1 is taken by process {os.getpid()} (" in caught.value.message
        assert "give it on every machine" in str(caught.value.hint)
        listener = address.listen("127.0.0.1", port, any_port=True)
        with listener.socket:
            assert listener.port != port
            assert f"using port {listener.port}" in listener.notice


def test_addresses_need_no_names() -> None:
    assert address.resolve("10.1.2.3") == "10.1.2.3"
    assert address.route_to("127.0.0.1") == "127.0.0.1"
    assert address.interface_of("127.0.0.1") == "lo"
    assert address.is_own("127.0.0.1")
    assert not address.is_own("203.0.113.9")


def failed(**fields) -> Failure:
    defaults = {"rank": 3, "node_rank": 1, "host": "h", "kind": "exit", "exit_code": 1, "time": 0.0}
    return Failure(**(defaults | fields))


def test_the_summary_is_short_whatever_the_failure_says() -> None:
    cause = failed(
        message="\n".join(f"line {number} " + "x" * 500 for number in range(40)),
        frame="f.py:1 in g: " + "y" * 500,
        hint="do this\nand that",
        log="logs/worker_3.log",
        tail=tuple(f"last {number}" for number in range(9)),
    )
    lines = summarise(Verdict(0, "failed", 1, cause, tuple(range(90))), log_dir=Path("logs"), step=7, seconds=3)
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 200
    assert lines[0] == "rank 3 on h (NODE_RANK 1) failed with exit code 1 after 3 s and 7 steps"
    assert lines[-1] == "the whole story: msrun report logs"
    assert "  hint: do this" in lines


def test_an_error_is_handed_over_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    for text in ("the first", "an echo of it"):
        try:
            json.loads("{") if text == "the first" else int("x")
        except ValueError as error:
            record_error(error)
    report = read_error(path)
    assert report.message.startswith("json.decoder.JSONDecodeError: Expecting property name")
    assert "test_launch_words.py:" in report.frame, "the last line that is not the library's"
    assert report.time is not None
    assert not report.echo
    assert read_error(tmp_path / "none.json") == read_error(Path("/dev/null"))


@pytest.mark.parametrize(
    ("kind", "message", "echo"),
    [
        ("RuntimeError", "[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1", True),
        ("DistBackendError", "NCCL error in: ProcessGroupNCCL.cpp", True),
        ("RuntimeError", "Connection reset by peer", True),
        ("RuntimeError", "Timed out waiting 1800000ms for recv operation to complete", True),
        ("ValueError", "a file is closed", False),
        ("OutOfMemoryError", "CUDA out of memory", False),
    ],
)
def test_echoes_are_told_from_causes(tmp_path: Path, kind: str, message: str, echo: bool) -> None:
    path = tmp_path / "error.json"
    path.write_text(json.dumps({"message": {"message": message, "extraInfo": {"type": kind, "timestamp": "1"}}}))
    assert read_error(path).echo is echo


@given(st.binary(max_size=200))
def test_any_error_file_is_read_or_passed_over(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("error") / "error.json"
    path.write_bytes(content)
    assert isinstance(read_error(path).message, str)


def test_the_last_lines_leave_out_what_the_error_file_has(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\n\ntwo\nTraceback (most recent call last):\n  File x\nValueError: no\n")
    assert last_lines(log) == ("one", "two")
    log.write_text("said\nFatal Python error: Segmentation fault\n\nCurrent thread:\n  File a\n  File b\n\nmore\n")
    assert last_lines(log) == ("Fatal Python error: Segmentation fault", "  File a", "  File b")
    assert last_lines(tmp_path / "none") == ()


def test_the_kernels_word_on_a_kill(tmp_path: Path) -> None:
    counts = tmp_path / "memory.events"
    counts.write_text("low 0\noom 1\noom_kill 2\n")
    watch = OutOfMemoryWatch([tmp_path / "none", counts])
    assert "counts no such kill" in watch.hint()
    counts.write_text("low 0\noom 3\noom_kill 3\n")
    assert watch.hint().startswith("out of memory: the control group counts 1 kill;")
    assert OutOfMemoryWatch([tmp_path / "none"]).hint() == "SIGKILL often means out of memory: look at dmesg"


def test_where_the_kernels_counts_stand() -> None:
    first = Path("/sys/fs/cgroup")
    assert oom_files("0::/a/b\n")[0] == first / "a/b/memory.events"
    assert oom_files("9:name=systemd:/\n4:cpu,memory:/x\n")[0] == first / "memory/x/memory.oom_control"
    assert oom_files("3:cpu:/\n") == []


def test_of_other_ranks_only_alarms_are_shown_and_equal_ones_once(tmp_path: Path) -> None:
    logs = {rank: tmp_path / f"worker_{rank}.log" for rank in range(3)}
    logs[0].write_text("hello\n")
    for rank in (1, 2):
        logs[rank].write_text(
            f"2026-01-02 03:04:0{rank},000 - x - INFO - quiet\n"
            f"2026-01-02 03:04:0{rank},000 - log/rank_{rank} - WARNING - loud\n"
            "Traceback (most recent call last):\n  File x, line 1\n    code\nValueError: no\nafter"
        )
    shown: list[str] = []
    console = Console(logs, 4, (0,), shown.append)
    console.show(final=True)
    assert shown == [
        "hello",
        "4:1 and 1 more: 2026-01-02 03:04:01,000 - log/rank_1 - WARNING - loud",
        "4:1 and 1 more: Traceback (most recent call last):",
        "4:1 and 1 more:   File x, line 1",
        "4:1 and 1 more:     code",
        "4:1 and 1 more: ValueError: no",
    ]
    console.begin_attempt()
    shown.clear()
    logs[0].write_text("begun")
    console.show()
    assert shown == [], "a line is shown when it is whole"


@given(st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"))), max_size=8), st.integers(1, 7))
def test_a_tail_gives_every_line_once(tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int) -> None:
    path = tmp_path_factory.mktemp("tail") / "log"
    content = "".join(line + "\n" for line in lines).encode()
    tail, seen = Tail(path), []
    with path.open("wb") as file:
        for begin in range(0, len(content), size):
            file.write(content[begin : begin + size])
            file.flush()
            seen += tail.lines()
    assert seen + tail.lines(final=True) == lines


def test_a_traceback_that_never_ends_is_cut() -> None:
    pick = AlarmFilter()
    texts = [pick(line) for line in ["Traceback (most recent call last):", *["  File x"] * 500]]
    assert max(len(text.splitlines()) for text in texts if text) < 100


def test_stacks_name_the_rank_that_is_not_in_the_collective() -> None:
    wait = '  File "x/torch/distributed/distributed_c10d.py", line 1 in all_reduce'
    idle = '  File "python/threading.py", line 9 in wait'
    first = f"Thread 0x1 (most recent call first):\n{idle}\n\n"
    waiting = f"{first}Current thread 0x2 (most recent call first):\n{wait}\n  File step\n"
    stuck = waiting.replace(wait, "  File sleep")
    assert innermost(waiting) == [wait, "  File step"]
    assert outsider({0: waiting, 1: stuck}) == "rank 1:\n  File sleep\n  File step"
    assert outsider({0: waiting, 1: waiting, 2: ""}) == ""
    holding = waiting.replace(idle, "  File read\n  File thread")
    assert outsider({0: waiting, 1: holding}) == "rank 1:\n  File read\n  File thread"


def test_files_of_an_earlier_launch_are_kept(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "logs", worker_name="w_{ip}", address="10.0.0.1")
    assert layout.worker_log(3).name == "w_10.0.0.1_3.log"
    assert Layout(tmp_path, "_2").events.name == "events_2.jsonl"
    layout.make()
    assert layout.root.stat().st_mode & 0o777 == 0o700
    assert layout.set_aside_job(range(2)) is None
    for path in (layout.worker_log(0), layout.events, layout.status):
        path.write_text(path.name)
    assert layout.set_aside_job(range(2)) == layout.root / "job_1"
    assert sorted(path.name for path in (layout.root / "job_1").iterdir()) == [
        "errors",
        "events.jsonl",
        "scheduler.log",
        "status.json",
        "w_10.0.0.1_0.log",
    ]


def test_status_survives_and_knows_a_recycled_process(tmp_path: Path) -> None:
    import psutil

    me = psutil.Process()
    status = Status("running", me.pid, me.create_time(), "h", 0, 2, "x.py")
    file = StatusFile(tmp_path / "status.json", status)
    file.update(step=4, total=9)
    found = read_status(tmp_path / "status.json")
    assert (found.step, found.is_alive, found.is_over) == (4, True, False)
    assert not Status("running", me.pid, me.create_time() - 100, "h", 0, 2, "x.py").is_alive
    (tmp_path / "status_1.json").write_text(json.dumps({"state": "failed"}))
    with pytest.raises(LaunchError, match=r"status_1\.json is not the status of a launch"):
        read_all(tmp_path)
    with pytest.raises(LaunchError, match="nothing was launched with this LOG_DIR"):
        read_all(tmp_path / "none")


def test_events_are_read_back_and_a_torn_end_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, 0)
    log.write("signal", signal=int(signal.SIGTERM))
    with path.open("ab") as file:
        file.write(b'{"v": 1, "time": 1, "event": "en')
    assert [event["event"] for event in read_events(path)] == ["signal"]
    assert "no verdict was written" in report_lines(tmp_path)[-1]
    path.write_text('{"v": 99, "time": 1, "event": "x", "node_rank": 0}\n')
    with pytest.raises(LaunchError, match="later version"):
        read_events(path)


def test_facts_follow_the_task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.py").touch()
    (tmp_path / "task.yaml").write_text("a: 1\n")
    command = find_command(("run.py", "--config", "task.yaml"))
    options = LaunchOptions(command.words)
    before = job_facts(options, command)
    (tmp_path / "task.yaml").write_text("a: 2\n")
    after = job_facts(options, command)
    assert {name for name in before if before[name] != after[name]} == {"the file task.yaml"}
    assert before["WORKER_NUM"] == "8"


def test_a_pulse_is_read_by_another() -> None:
    memory = bytearray(2 * SLOT_BYTES)
    Pulse(memory, 1).stamp(7, "forward")
    Pulse(memory, 1).steps(6, 20, 1.5, 300.0)
    stamp = Pulse(memory, 1).read()
    assert (stamp.step, stamp.phase, stamp.done, stamp.total, stamp.loss) == (7, "forward", 6, 20, 1.5)
    first = stamp.time
    Pulse(memory, 1).refresh()
    assert Pulse(memory, 1).read().time >= first
    assert Pulse(memory, 0).read().phase == ""
    pulse().stamp(1, "without a launcher this goes nowhere")
