"""What the C library does with memory that was freed: keep it for the next step.

A step of a torch module frees tens of MiB and asks for them again in the next one. By default glibc
gives such blocks back to the system, which hands out zeroed pages anew, one fault each: 18,000 in a
step of `cnn` at batch size 256. The command line asks for another way, as its process is its own; a
program that calls `dpsgd.train` is left as it is.
"""

from __future__ import annotations

import ctypes
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MOST_KEPT = 2**31 - 1
LARGEST_ON_THE_HEAP = 2**25
"""The largest that glibc accepts; larger blocks are always given back."""


@cache
def keep_freed_memory() -> None:
    """From now on this process keeps what it frees; nothing happens where there is no glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_ON_THE_HEAP)
    mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
