"""Configures the C library's allocator: few arenas; the largest blocks are freed at once.

By default each thread has its own arena. Messages of megabytes then leave holes in the arenas of
all of gRPC's threads, and the process grows by hundreds of megabytes. Messages of ordinary size
stay in the two arenas: new pages from the kernel for each message of 4 MB would cost 20 ms of the
event loop, thirty times as much as a copy into mapped memory.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

# From malloc.h; Python does not define them.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_ARENAS: Final = 2
# Twice the largest message.
_LARGE_BYTES: Final = 8 * 2**20
_TRIM_BYTES: Final = 128 * 2**20


def give_back_free_memory() -> None:
    """Return to the system what this process has freed; nothing unless the C library is glibc."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_large_blocks() -> None:
    """Configure the allocator of this process; does nothing unless the C library is glibc."""
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
