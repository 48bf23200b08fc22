"""The memory that a program keeps for the next picture."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM, _MMAP = -1, -3  # of glibc's malloc.h
_LARGEST = 2**25  # bytes; glibc takes no more: what is larger goes back to the system
_KEPT = 2**26  # bytes at the end of each thread's memory, which has as many at most


def keep_memory() -> None:
    """Have glibc keep what is freed, rather than ask the system for it again: of new memory each
    page costs two microseconds, and a photo of 1920x1080 takes 4,000 of them.

    For commands that predict for many pictures, since it holds for all of the process. Where
    another library gives the memory, or the environment says how, nothing changes.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other libraries have none
    if mallopt is not None:
        mallopt(_MMAP, _LARGEST)
        mallopt(_TRIM, _KEPT)
