"""How the C library holds memory: few arenas, and the largest blocks are given back at once.

By default each thread has an arena of its own. Messages of megabytes then leave holes in the arenas
of all of gRPC's threads, and the process grows by hundreds of megabytes. Messages of
ordinary size stay in the arenas, which are two: new pages from the kernel for each of 4 MB would
cost 20 ms of the event loop, thirty times what copying it into known memory does.
"""

from __future__ import annotations

import ctypes
from typing import Final

# Of malloc.h; Python has no names for them.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_ARENAS: Final = 2
# Twice the largest message.
_LARGE_BYTES: Final = 8 * 2**20
_TRIM_BYTES: Final = 128 * 2**20


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
