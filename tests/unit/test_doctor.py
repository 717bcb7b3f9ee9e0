"""The doctor finds what is wrong with a machine, and survives it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runformer.doctor import Finding, examine, network, software, system


def run(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runformer", "doctor", *arguments],
        cwd=folder, env=os.environ | (env or {}), capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


def test_a_healthy_machine(tmp_path: Path) -> None:
    done = run(tmp_path, "--json")
    findings = [Finding(**json.loads(line)) for line in done.stdout.splitlines()]
    problems = [finding for finding in findings if finding.state == "problem"]
    assert (done.returncode, problems) == (0, [])
    topics = ["versions", "devices", "processors", "memory", "shared memory", "open files", "disk", "clock"]
    assert {*topics, "interfaces", "port", "compiler", "reader", "all-reduce"} <= {
        finding.topic for finding in findings
    }
    assert next(finding for finding in findings if finding.topic == "all-reduce").state == "ok"


def test_problems_have_an_exit_code_and_advice(tmp_path: Path) -> None:
    done = run(tmp_path, "--output_dir", "/proc/self", env={"RANK": "9", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"})
    assert done.returncode == 1
    assert "problem   disk          /proc/self cannot be written" in done.stdout
    assert "→ choose another --output_dir" in done.stdout
    assert "RANK is 9, but WORLD_SIZE is 2" in done.stdout
    assert "to MASTER_ADDR 127.0.0.1 from 127.0.0.1 through lo" in done.stdout


def test_a_reader_that_was_not_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(software.reader()).state == "ok"
    monkeypatch.setattr(software, "native", None)
    assert "install a C compiler" in only(software.reader()).advice


def only(findings) -> Finding:
    (finding,) = findings
    return finding


def test_a_held_port_names_its_holder() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finding = only(network.port(taken.getsockname()[1]))
    assert finding.state == "note"
    assert f"process {os.getpid()} (" in finding.text


def test_interfaces_that_are_not_there() -> None:
    findings = list(network.interfaces({"GLOO_SOCKET_IFNAME": "ib7", "NCCL_SOCKET_IFNAME": "^docker"}))
    assert [finding.text for finding in findings if finding.state == "problem"] == [
        "GLOO_SOCKET_IFNAME is ib7, and no interface is called so"
    ]
    unknown = list(network.interfaces({"MASTER_ADDR": "no-such-host.invalid"}))[-1]
    assert unknown.state == "problem"
    assert "MASTER_ADDR no-such-host.invalid is not known here" in unknown.text


def test_variables_that_change_runs() -> None:
    found = [finding.text for finding in network.variables({"CUDA_LAUNCH_BLOCKING": "1", "NCCL_P2P_DISABLE": "0"})]
    assert found == ["CUDA_LAUNCH_BLOCKING is 1: every kernel is waited for: good for debugging, slow"]
    inside = only(network.variables({"RANK": "0", "WORLD_SIZE": "2"}))
    assert inside.text == "WORLD_SIZE says that this is rank 0 of 2"


def test_little_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_SHARED_MEMORY", 2**60)
    assert system.shared_memory(tmp_path).state == "note"
    assert system.shared_memory(tmp_path / "none").state == "problem"


def test_low_limits_in_a_process_that_has_them() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from runformer.doctor import system; print(*system.limits(), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "topic='open files', state='problem', text='no more than 64'" in done.stdout


def test_old_and_missing_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=999.1", "no-such-library", "numpy", "gguf>=0.10; extra == 'gguf'"]
    monkeypatch.setattr(software, "requires", lambda _name: wanted)
    found = [finding for finding in software.versions() if finding.state == "problem"]
    assert ["older than 999.1" in found[0].text, found[1].text] == [True, "no-such-library is missing"]
    assert found[0].advice == "pip install 'torch>=999.1'"


def test_an_examination_that_breaks_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken():
        raise RuntimeError("no such luck")

    for room, name in ((software, "all_reduce"), (software, "devices"), (system, "clock")):
        monkeypatch.setattr(room, name, broken)
    broken_topics = {finding.topic for finding in examine(tmp_path) if "RuntimeError: no such luck" in finding.text}
    assert broken_topics == {"all-reduce", "devices", "clock"}
