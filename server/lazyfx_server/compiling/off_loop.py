"""Work that would hold the event loop for more than a few milliseconds, in a thread.

One thread for all of it: Python runs one thread at a time, and with several that compute the
event loop would wait for each of them in turn.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

T = TypeVar("T")

# Reading messages of this size takes less than a millisecond.
_ON_LOOP_BYTES: Final = 16 * 1024
_HASH_ON_LOOP_BYTES: Final = 2**20

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="lazyfx-large")


async def compute(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """Call `work`, in the thread for long computations unless it reads few bytes.

    Args:
        size: Bytes that it reads.
        work: What is called.
        arguments: What it is called with.
    """
    if size <= _ON_LOOP_BYTES:
        return work(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_THREAD, work, *arguments)


async def sha256(data: bytes | memoryview) -> bytes:
    """The SHA-256 of bytes, computed in a thread when they are many."""
    if len(data) <= _HASH_ON_LOOP_BYTES:
        return hashlib.sha256(data).digest()
    # hashlib lets other threads run meanwhile.
    return await asyncio.to_thread(lambda: hashlib.sha256(data).digest())
