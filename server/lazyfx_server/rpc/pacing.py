"""Delays refusals to connections that send many refused bytes.

Reading a large message costs the event loop milliseconds, even if the message is then refused. A
caller that sends such messages back to back would take most of the server's time, so its refusals
are delayed. The first tens of megabytes cause no delay: a mistake, or a whole test suite of
mistakes, is answered at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from cachetools import LRUCache

UNCOUNTED_BYTES: Final = 64 * 2**20
MAX_SECONDS: Final = 5.0
_CONNECTIONS: Final = 4096


class RefusalPacing:
    """Delays the refusals of a connection in proportion to its refused bytes.

    Args:
        rate: Refused bytes per second that a connection may sustain; 0 for no delays.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._debts: LRUCache[str, tuple[int, float]] = LRUCache(_CONNECTIONS)

    def delay(self, connection: str, size: int) -> float:
        """Record a refused request of this size; return the seconds to wait before refusing it."""
        if not self._rate or not size:
            return 0.0
        now = self._clock()
        debt, since = self._debts.get(connection, (0, now))
        debt = max(0, debt - int((now - since) * self._rate)) + size
        self._debts[connection] = (debt, now)
        return min(MAX_SECONDS, max(0, debt - UNCOUNTED_BYTES) / self._rate)

    async def wait(self, connection: str, size: int) -> None:
        """Record a refused request and wait for its delay."""
        if seconds := self.delay(connection, size):
            await asyncio.sleep(seconds)
