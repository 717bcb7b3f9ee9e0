"""What the C library does with memory that tensors on a CPU give back."""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for its next tensors, instead of giving it back to the system.

    Every step frees and takes again gigabytes. glibc would return the larger pieces each time, and the system would
    clear each page before handing it out again, which can take a third of a bfloat16 step. Other C libraries, and
    other allocators that are preloaded, know no such parameters and stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_MMAP_MAX, 0)
