"""Versions, devices, a compiler, and whether two processes can compute together."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from runformer.data.native import native
from runformer.doctor.finding import Finding, note, ok, problem

_CHILD_SECONDS = 25

_DEVICES = """
import json, torch
found = [["CUDA", torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)] for i in range(torch.cuda.device_count())]
print(json.dumps(found))
"""

_ALL_REDUCE = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
value = torch.ones(1000)
dist.all_reduce(value)
assert value.sum().item() == 2000, value.sum().item()
dist.barrier()
dist.destroy_process_group()
"""


def versions() -> Iterator[Finding]:
    """Python, and the libraries that the package requires, against the lowest versions that will do."""
    yield ok("versions", f"python {platform.python_version()} on {platform.machine()}")
    try:
        required = requires("runformer") or []
    except PackageNotFoundError:
        yield problem("versions", "runformer is not installed", "pip install -e . in its folder")
        return
    fine = []
    for text in required:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:>=([\d.]+))?(.*)$", text)
        if match is None or "extra ==" in match[3]:
            continue
        finding = _version(match[1], match[2] or "0")
        if isinstance(finding, Finding):
            yield finding
        else:
            fine.append(finding)
    yield ok("versions", ", ".join(fine))


def _version(name: str, least: str) -> Finding | str:
    try:
        found = version(name)
    except PackageNotFoundError:
        return problem("versions", f"{name} is missing", f"pip install '{name}>={least}'")
    if _numbers(found) < _numbers(least):
        return problem("versions", f"{name} is {found}, older than {least}", f"pip install '{name}>={least}'")
    return f"{name} {found}"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"[\d.]*", text)[0].split(".") if part)  # type: ignore[index]


def devices() -> Iterator[Finding]:
    """Accelerators, asked for in a process of its own: a driver that hangs does not hang us."""
    done = _child([sys.executable, "-c", _DEVICES])
    if isinstance(done, str):
        yield problem("devices", f"torch cannot say what devices there are: {done}", "check the driver: nvidia-smi")
        return
    found = json.loads(done.stdout.splitlines()[-1])
    if not found:
        yield note("devices", "no accelerator that this build of torch can use: runs are on the CPU")
    for index, (kind, name, free, total) in enumerate(found):
        yield ok("devices", f"{kind} {index}: {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")


def compiler() -> Iterator[Finding]:
    """Whether torch.compile has a C++ compiler."""
    names = [os.environ.get("CXX") or "", "g++", "clang++"]
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        yield note("compiler", "no C++ compiler: --mode 0 runs eagerly on a CPU", "apt-get install g++")
    else:
        yield ok("compiler", path)


def reader() -> Iterator[Finding]:
    """Whether rows of datasets are decoded by compiled code."""
    if native is not None:
        yield ok("reader", "the reader of datasets is compiled")
    else:
        advice = "install a C compiler, then this package again, with --no-cache-dir"
        yield note(
            "reader", "the reader of datasets is not compiled, or for older code: it is many times slower", advice
        )


def all_reduce() -> Iterator[Finding]:
    """Two processes under our launcher add up their tensors over loopback."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "all_reduce.py"
        script.write_text(_ALL_REDUCE)
        numbers = ["--worker_num", "2", "--local_worker_num", "2", "--join", "True", "--log_dir", f"{folder}/logs"]
        done = _child([sys.executable, "-m", "runformer.launch", *numbers, str(script)])
        if isinstance(done, str):
            yield problem("all-reduce", f"two processes cannot compute together: {done}", "see the findings above")
        else:
            yield ok("all-reduce", "two processes found each other over loopback, and their sum is right")


def _child(command: list[str]) -> subprocess.CompletedProcess[str] | str:
    """Run a command; what is wrong where it fails."""
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_SECONDS, env=alone, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {_CHILD_SECONDS} s"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {done.returncode}"
    return done
