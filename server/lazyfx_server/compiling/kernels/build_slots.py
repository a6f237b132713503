"""The compilers of a machine, shared by its jobs: each job in turn gets the next free one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class BuildSlots:
    """A number of slots; jobs that wait for one take turns, whatever each of them waits for.

    Args:
        slots: Builds that may run at the same time.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._lines: dict[object, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def slot(self, job: object) -> AsyncIterator[None]:
        """Wait for a slot, and hold it within the block.

        Args:
            job: Whose turn it takes; hashable.
        """
        await self._take(job)
        try:
            yield
        finally:
            self._free += 1
            self._serve()

    async def _take(self, job: object) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(job, deque()).append(turn)
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given a slot at the same moment
                self._free += 1
                self._serve()
            raise

    def _serve(self) -> None:
        while self._free and self._lines:
            job = next(iter(self._lines))
            line = self._lines.pop(job)
            while line and line[0].done():  # no longer waits
                line.popleft()
            if not line:
                continue
            self._free -= 1
            line.popleft().set_result(None)
            if line:
                self._lines[job] = line  # to the end of the row: the other jobs come first
