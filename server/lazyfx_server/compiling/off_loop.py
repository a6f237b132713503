"""Runs work in a thread that would block the event loop for more than a few milliseconds.

A single thread: Python runs one thread at a time, so with several the event loop would wait for
each of them in turn.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

T = TypeVar("T")

# Parsing messages of this size takes less than a millisecond.
_ON_LOOP_BYTES: Final = 16 * 1024
# Hashing this much takes about a millisecond.
_HASH_ON_LOOP_BYTES: Final = 2**20

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="lazyfx-large")


async def compute(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """Call `work`, in the thread unless it processes few bytes.

    Args:
        size: Bytes that it processes.
        work: The function to call.
        arguments: Its arguments.
    """
    if size <= _ON_LOOP_BYTES:
        return work(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_THREAD, work, *arguments)


async def sha256(data: bytes | memoryview) -> bytes:
    """The SHA-256 of bytes, computed in a thread if there are many."""
    if len(data) <= _HASH_ON_LOOP_BYTES:
        return hashlib.sha256(data).digest()
    # hashlib releases the GIL.
    return await asyncio.to_thread(lambda: hashlib.sha256(data).digest())
