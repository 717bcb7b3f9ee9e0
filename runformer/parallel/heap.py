"""What the C library does with memory that tensors on a CPU give back."""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE = 8 * 2**20


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for its next tensors, but for the large ones.

    Every step frees and takes again gigabytes. glibc would return the end of its heap each time, and the system would
    clear each page before handing it out again, which can take a third of a small bfloat16 step. Tensors from 8 MiB on
    are mapped one by one and given back, though: in a heap, gradients that stay until the end of a step would settle in
    the gaps of activations, and the next layer's activations find no gap that is wide enough. With layers recomputed
    that can take three quarters more memory. Other C libraries, and other allocators that are preloaded, know no such
    parameters and stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_MMAP_THRESHOLD, _LARGE)
