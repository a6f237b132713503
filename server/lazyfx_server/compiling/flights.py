"""One flight per key: identical requests that are under way share one piece of work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Flights(Generic[Result]):
    """Runs work once for each key that is in flight.

    A waiter that leaves (its call was cancelled or timed out) never ends the flight,
    which belongs to all who wait and to the cache.
    """

    def __init__(self) -> None:
        self._tasks: dict[bytes, asyncio.Task[Result]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    async def join(self, key: bytes, work: Callable[[], Awaitable[Result]]) -> tuple[Result, bool]:
        """Wait for the flight of `key`, starting it with `work` when there is none.

        Returns:
            The result, and whether this caller started the flight.

        Raises:
            Exception: Whatever `work` raised; every waiter gets it.
        """
        task = self._tasks.get(key)
        # A flight that has landed may not have been cleared away yet.
        leads = task is None or task.done()
        if task is None or leads:
            task = asyncio.ensure_future(_run(work))
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._land(key, done))
        return await asyncio.shield(task), leads

    def _land(self, key: bytes, task: asyncio.Task[Result]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled():
            # Mark the exception as seen even when every waiter has left.
            task.exception()

    async def land_all(self) -> None:
        """Wait until nothing is in flight."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))


async def _run(work: Callable[[], Awaitable[Result]]) -> Result:
    return await work()
