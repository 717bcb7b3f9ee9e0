"""Processors, memory, limits, disk and clock: what the operating system gives."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from runformer.doctor.finding import Finding, note, ok, problem

_CGROUP = Path("/sys/fs/cgroup")
_GIB = 2**30
_SHARED_MEMORY = _GIB
_DISK = 5 * _GIB
_OPEN_FILES, _PROCESSES = 1024, 1024
_UNSYNCHRONISED = 0x40  # STA_UNSYNC of adjtimex(2)


def processors() -> Iterator[Finding]:
    """The cores that this process may use, by affinity and by the quota of its control group."""
    cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    if quota is not None and quota < cores:
        yield note("processors", f"{cores} cores, of which the control group lets {quota:g} run at a time")
    else:
        yield ok("processors", f"{cores} of {os.cpu_count()} cores")


def _cpu_quota() -> float | None:
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def memory() -> Iterator[Finding]:
    """Memory of the machine, the limit of the control group, and shared memory."""
    found = psutil.virtual_memory()
    limit = _memory_limit()
    text = f"{found.available / _GIB:.1f} of {found.total / _GIB:.1f} GiB free"
    if limit is not None and limit < found.total:
        yield note("memory", f"{text}; the control group allows {limit / _GIB:.1f} GiB")
    else:
        yield ok("memory", text)
    yield shared_memory(Path("/dev/shm"))


def _memory_limit() -> int | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return int((_CGROUP / name).read_text())
        except (OSError, ValueError):
            continue
    return None


def shared_memory(path: Path) -> Finding:
    """Whether there is room for what processes of a machine share, such as NCCL's buffers."""
    advice = "start the container with --shm-size 8g, or --ipc host"
    if not path.is_dir():
        return problem("shared memory", f"there is no {path}", advice)
    size = shutil.disk_usage(path).total
    text = f"{size / 2**20:.0f} MiB in {path}"
    return ok("shared memory", text) if size >= _SHARED_MEMORY else note("shared memory", f"only {text}", advice)


def limits() -> Iterator[Finding]:
    """How many files and processes this user may have."""
    for topic, number, least, flag in (
        ("open files", resource.RLIMIT_NOFILE, _OPEN_FILES, "-n 65536"),
        ("processes", resource.RLIMIT_NPROC, _PROCESSES, "-u 65536"),
    ):
        soft, _ = resource.getrlimit(number)
        if soft == resource.RLIM_INFINITY or soft >= least:
            yield ok(topic, "no limit" if soft == resource.RLIM_INFINITY else f"up to {soft}")
        else:
            yield problem(topic, f"no more than {soft}", f"raise it in the shell that starts the job: ulimit {flag}")


def disk(folder: Path) -> Iterator[Finding]:
    """Whether runs can write their output here, and how much."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield problem("disk", f"{folder} cannot be written: {error.strerror}", "choose another --output_dir")
        return
    free = shutil.disk_usage(folder).free
    text = f"{free / _GIB:.1f} GiB free in {folder}"
    if free < _DISK:
        yield note("disk", text, "checkpoints of a 7B model with its optimizer take 80 GiB each")
    else:
        yield ok("disk", text)


def clock() -> Iterator[Finding]:
    """Whether the clock goes, and whether something keeps it right."""
    before = time.time(), time.monotonic()
    time.sleep(0.05)
    drift = abs((time.time() - before[0]) - (time.monotonic() - before[1]))
    if drift > 0.02:
        advice = "stop whatever sets it back and forth"
        yield problem("clock", f"it jumped by {drift:.2f} s while it was looked at", advice)
    elif _is_synchronised():
        yield ok("clock", f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}, synchronised")
    else:
        yield note("clock", f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}; the kernel does not know it to be synchronised")


def _is_synchronised() -> bool:
    """What adjtimex(2) says, whose structure begins with modes, offset, frequency, maxerror, esterror, status."""
    buffer = (ctypes.c_long * 64)()
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None or adjtimex(ctypes.byref(buffer)) < 0:
        return False
    return not buffer[5] & _UNSYNCHRONISED
