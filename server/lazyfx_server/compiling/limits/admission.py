"""Admission: a bounded queue in front of the workers, fair between tenants."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lazyfx_server.errors import OverloadedError
from lazyfx_server.settings.limits import CallLimits


class Admission:
    """Lets `slots` jobs run and `max_queue` more wait; refuses all others at once.

    Tenants take turns: a tenant with many waiting jobs delays only its own. When the queue is full,
    a new job of a tenant with fewer jobs displaces the last job of the tenant with the most.

    Args:
        slots: Number of concurrent jobs.
        limits: Bounds on calls.
    """

    def __init__(self, slots: int, limits: CallLimits) -> None:
        self._free = slots
        self._queue = limits.bound("max_queue")
        # The next tenant is first.
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._waiting = 0
        self._recent_seconds = 0.1
        self._count = slots

    @asynccontextmanager
    async def slot(self, tenant: str) -> AsyncIterator[float]:
        """Hold a slot; yields the seconds spent waiting for it.

        Args:
            tenant: The tenant of the job.

        Raises:
            OverloadedError: The queue is full; says when to retry.
        """
        arrived = time.perf_counter()
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait(tenant)
        started = time.perf_counter()
        try:
            yield started - arrived
        finally:
            self._release()
            # A moving average of job durations, for the retry delay of refused callers.
            self._recent_seconds += 0.2 * (time.perf_counter() - started - self._recent_seconds)

    def resize(self, slots: int) -> None:
        """Change the number of slots; jobs that hold one keep it."""
        self._free += slots - self._count
        self._count = slots
        while self._free > 0 and self._lines:
            self._free -= 1
            self._release()

    async def _wait(self, tenant: str) -> None:
        if self._waiting >= self._queue.most:
            self._make_room(tenant)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, deque()).append(turn)
        self._waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._release()
            else:
                self._leave(tenant, turn)
            raise

    def _release(self) -> None:
        """Give the slot to the first job of the next tenant."""
        while self._lines and self._free >= 0:  # below 0, there are fewer slots than before
            tenant, line = next(iter(self._lines.items()))
            turn = line[0]
            self._leave(tenant, turn)
            if tenant in self._lines:
                self._lines.move_to_end(tenant)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _make_room(self, tenant: str) -> None:
        """Refuse the new job, or the last job of a tenant that has more."""
        refusal = self._refusal()
        longest = max(self._lines, key=lambda name: len(self._lines[name]), default=None)
        own = len(self._lines.get(tenant, ()))
        if longest is None or len(self._lines[longest]) <= own + 1:
            raise refusal
        last = self._lines[longest][-1]
        self._leave(longest, last)
        if not last.done():
            last.set_exception(refusal)

    def _leave(self, tenant: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(tenant)
        if line is None or turn not in line:
            return
        line.remove(turn)
        self._waiting -= 1
        if not line:
            del self._lines[tenant]

    def _refusal(self) -> OverloadedError:
        delay = max(0.1, self._recent_seconds * (self._waiting + 1) / self._count)
        return OverloadedError(
            f"{self._waiting} jobs are already waiting for a worker{self._queue}",
            retry_after=round(delay, 3),
        )
