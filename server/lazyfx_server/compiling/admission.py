"""Admission: a bounded queue in front of the workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lazyfx_server.errors import OverloadedError


class Admission:
    """Lets `slots` jobs run and `queue` more wait; refuses the rest at once.

    Args:
        slots: Jobs that run at a time.
        queue: Jobs that may wait.
    """

    def __init__(self, slots: int, queue: int) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._queue = queue
        self._waiting = 0
        self._recent_seconds = 0.1
        self._count = slots

    @property
    def waiting(self) -> int:
        """Jobs that wait for a worker now."""
        return self._waiting

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Hold a slot; yields the seconds that were spent waiting for it.

        Raises:
            OverloadedError: The queue is full; says when to try again.
        """
        if self._slots.locked() and self._waiting >= self._queue:
            delay = max(0.1, self._recent_seconds * (self._waiting + 1) / self._count)
            raise OverloadedError(
                f"{self._waiting} jobs already wait for a worker", retry_after=round(delay, 3)
            )
        arrived = time.perf_counter()
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        started = time.perf_counter()
        try:
            yield started - arrived
        finally:
            self._slots.release()
            # A short memory of how long jobs take, for the advice given to refused callers.
            self._recent_seconds += 0.2 * (time.perf_counter() - started - self._recent_seconds)
