"""Keep freed memory in the process: training on a CPU allocates the same large tensors every step.

glibc returns every block above 128 kB .. 32 MB to the kernel when it is freed, and the kernel then
hands out fresh zeroed pages one fault at a time: thousands of faults a training step.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_ONE_GIBIBYTE = 1 << 30


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed blocks for reuse; return whether it was glibc and agreed.

    Call it once at the start of a process that trains. The process then holds on to its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    answers = [mallopt(option, _ONE_GIBIBYTE) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)]
    return all(answers)
