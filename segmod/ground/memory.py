"""How the C library hands out memory to a process."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST = 2**31 - 1  # mallopt takes an int; glibc allows no higher mmap threshold than 4 * sizeof(long) MiB = 32 MiB


def keep_freed_memory() -> None:
    """Let this process keep the large buffers it frees, to use them again; does nothing where malloc is not glibc's.

    glibc hands buffers of more than 32 MiB back to the kernel at once, and having them anew for the next sample or
    layer costs more in page faults than filling them: a third of the CPU time of a hypercolumn training step.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
