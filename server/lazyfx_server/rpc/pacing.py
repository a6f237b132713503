"""Answers to connections that send much that is refused come later.

Reading a large message costs the event loop milliseconds, whatever comes of it. A caller that
sends one after the other would take most of the server's time; so refused bytes are paid for with
time, by the connection that sent them. The first tens of megabytes are free: a mistake, or a whole
test suite of mistakes, is answered at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from cachetools import LRUCache

FREE_BYTES: Final = 64 * 2**20
MOST_SECONDS: Final = 2.0
_CONNECTIONS: Final = 4096


class Received:
    """Bytes that a call has brought."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


_RECEIVED: ContextVar[Received | None] = ContextVar("lazyfx_received", default=None)


def count_received() -> Received:
    """Count what this call brings, from now on."""
    received = Received()
    _RECEIVED.set(received)
    return received


def note_received(size: int) -> None:
    """So many bytes have come."""
    received = _RECEIVED.get()
    if received is not None:
        received.bytes += size


class RefusalPacing:
    """Delays refusals by the bytes that a connection has had refused.

    Args:
        rate: Bytes a second that a connection may have refused for long; 0 for no delays.
        clock: Seconds that never go back.
    """

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._debts: LRUCache[str, tuple[int, float]] = LRUCache(_CONNECTIONS)

    def delay(self, connection: str, size: int) -> float:
        """Seconds to wait before a request of this size is refused; it counts from now on."""
        if not self._rate or not size:
            return 0.0
        now = self._clock()
        debt, since = self._debts.get(connection, (0, now))
        debt = max(0, debt - int((now - since) * self._rate)) + size
        self._debts[connection] = (debt, now)
        return min(MOST_SECONDS, max(0, debt - FREE_BYTES) / self._rate)

    async def wait(self, connection: str, size: int) -> None:
        """Wait for as long as `delay` says."""
        if seconds := self.delay(connection, size):
            await asyncio.sleep(seconds)
