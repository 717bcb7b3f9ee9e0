"""Freed memory stays with the process: a second tensor of the same size touches no new page."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# In a process of its own, since the setting cannot be taken back. Sizes: below and above what glibc maps by itself.
PROBE = """
import resource, sys, torch
from runformer.parallel.heap import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults(elements):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(elements)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for elements in (2**19, 2**24):
    print(min([faults(elements) for _ in range(20)][10:]) < elements * 4 / 4096 / 10)
"""


def kept(mode: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", PROBE, mode], check=True, capture_output=True, text=True, timeout=120)
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_tensors_take_memory_that_was_freed() -> None:
    assert kept("keep") == ["True", "True"]
    assert kept("leave")[1] == "False", "the C library does so by itself: the setting is not needed any more"
