"""How the C library holds memory: large blocks are given back when they are freed.

By default each thread has an arena of its own, and glibc raises the size from which blocks come
from the kernel directly as soon as one is freed. Messages of megabytes then leave holes
in the arenas of all of gRPC's threads, and the process grows by hundreds of megabytes.
"""

from __future__ import annotations

import ctypes
from typing import Final

# Of malloc.h; Python has no names for them.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_ARENAS: Final = 2
_LARGE_BYTES: Final = 256 * 1024
_TRIM_BYTES: Final = 4 * 2**20


def give_back_large_blocks() -> None:
    """Set this up for the process; does nothing where the C library is another than glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for parameter, value in (
        (_M_ARENA_MAX, _ARENAS),
        (_M_MMAP_THRESHOLD, _LARGE_BYTES),
        (_M_TRIM_THRESHOLD, _TRIM_BYTES),
    ):
        mallopt(parameter, value)
