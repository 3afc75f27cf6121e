"""How the C library hands out memory to a process, and what oneDNN keeps of it."""

from __future__ import annotations

import ctypes
import os

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


def keep_few_shapes() -> None:
    """Bound what oneDNN keeps for each shape that a layer has met; to be called before the first layer computes.

    By default it keeps 1024 of them, which images of ever new sizes fill: 85 MB for a small net.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # its own, and that of torch around it
        os.environ.setdefault(cache, "128")


def give_freed_memory_back() -> None:
    """Hand memory that is free but scattered back to the kernel; the opposite of `keep_freed_memory`, for once."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
