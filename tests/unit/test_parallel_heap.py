"""Freed memory stays with the process, as far as that costs no more memory."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

# In processes of their own, since the setting cannot be taken back.
KEEP = """
import ctypes, resource, sys, torch
from runformer.parallel.heap import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
if sys.argv[1] == "map":
    ctypes.CDLL(None).mallopt(-3, 8 * 2**20)
"""
# What tensors call, without what Python would keep behind them: a block at the end of the heap.
FAULTS = """
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
def faults(size=4 * 2**20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(library.malloc(size))
    ctypes.memset(block, 1, size)
    library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(sorted(faults() for _ in range(20))[10])
"""
# Each layer leaves two gradients of 6 MiB, among tensors of nearly 32 MiB that it needs for a while; after the first
# that is freed glibc by itself would map none of that size any more.
PEAK = """
def most():  # not of getrusage, which counts what the parent took before this process began
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = most()
gradients = []
for layer in range(12):
    activations = [torch.ones(2**23 - 4096) for _ in range(3)]
    gradients.append(torch.ones(3 * 2**19))
    del activations[0]
    gradients.append(torch.ones(3 * 2**19))
    del activations
print(most() - before)
"""
GLIBC_ONLY = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def run(probe: str, mode: str) -> str:
    command = [sys.executable, "-c", KEEP + probe, mode]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


@GLIBC_ONLY
def test_tensors_take_memory_that_was_freed() -> None:
    pages = 4 * 2**20 // resource.getpagesize()
    assert int(run(FAULTS, "keep")) < pages / 10
    assert int(run(FAULTS, "map")) > pages / 2, "the C library does so by itself: the setting is not needed any more"


@GLIBC_ONLY
def test_gradients_do_not_settle_in_the_gaps_of_activations() -> None:
    limit = 1.05 * (3 * 32 + 24 * 6) * 1024
    assert int(run(PEAK, "keep")) < limit, "more than 5 % in the gaps"
