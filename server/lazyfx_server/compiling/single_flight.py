"""One flight per key: identical requests share one lookup and one piece of work.

The lookup of a tier that has to be awaited belongs into the flight as well: between a lookup
that found nothing and a flight that starts, another one could end.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, Literal, TypeAlias, TypeVar

Result = TypeVar("Result")

STOP_SECONDS: Final = 0.1
"""How long a running job may go on when no caller waits for it any more."""

Outcome: TypeAlias = Literal["dropped", "stopped", "continued"]
"""What became of an abandoned flight: it had not begun, it was stopped, it goes on."""


@dataclass(frozen=True, slots=True)
class Landing(Generic[Result]):
    """How a flight ended, for one of those who waited for it.

    Attributes:
        led: Whether they started it; all others joined it.
        task: The work; it has ended.
    """

    led: bool
    task: asyncio.Task[Result]

    @property
    def error(self) -> BaseException | None:
        """What the work raised, if it did."""
        return self.task.exception()

    def result(self) -> Result:
        """What the work returned.

        Raises:
            Exception: Whatever it raised; all who waited get it.
        """
        return self.task.result()


class Flight(Generic[Result]):
    """One piece of work and those who wait for it.

    The work says how far it is. That decides what happens when its last waiter leaves: what has
    not begun is dropped, what runs is stopped soon, what is finished but for storing it goes on.

    Args:
        work: Called with the flight.
        after: What has to end first.
    """

    def __init__(
        self,
        work: Callable[[Flight[Result]], Awaitable[Result]],
        after: Collection[asyncio.Task[Result]],
    ) -> None:
        self.waiters = 0
        self.begun = False
        self._grace_period: Callable[[], float] = lambda: 0.0
        self.task = asyncio.ensure_future(self._run(work, after))

    async def _run(
        self,
        work: Callable[[Flight[Result]], Awaitable[Result]],
        after: Collection[asyncio.Task[Result]],
    ) -> Result:
        if after:
            await asyncio.wait(after)
        return await work(self)

    def mark_running(self, grace_period: Callable[[], float] = lambda: STOP_SECONDS) -> None:
        """The work has begun.

        Args:
            grace_period: Asked when the last waiter leaves: for how many seconds the work goes on
                without any; infinity to finish it.
        """
        self.begun = True
        self._grace_period = grace_period

    def mark_finishing(self) -> None:
        """What remains is quick and worth doing for whoever asks next."""
        self.mark_running(lambda: math.inf)

    def grace_period(self) -> float:
        """For how many seconds the work would go on without waiters."""
        return self._grace_period()


class SingleFlight(Generic[Result]):
    """Runs work once for each key that is in flight.

    A waiter that leaves (its call was cancelled or timed out) ends the flight only when it was
    the last one; see `Flight`.

    Args:
        on_abandoned: Told what becomes of each flight whose last waiter has left.
    """

    def __init__(self, on_abandoned: Callable[[Outcome], None]) -> None:
        self._on_abandoned = on_abandoned
        self._flights: dict[bytes, Flight[Result]] = {}
        # Cancelled, but not ended yet: these must not be joined.
        self._ending: dict[bytes, set[asyncio.Task[Result]]] = {}

    def __len__(self) -> int:
        return len(self._flights) + sum(map(len, self._ending.values()))

    async def join(
        self, key: bytes, work: Callable[[Flight[Result]], Awaitable[Result]]
    ) -> Landing[Result]:
        """Wait for the flight of `key` to end, starting it with `work` when there is none.

        There is no await between the call and joining or leading.
        """
        flight = self._flights.get(key)
        # A flight that has ended may not have been cleared away yet.
        led = flight is None or flight.task.done()
        if flight is None or led:
            # What an earlier flight of the key still cleans up must not be in the way.
            flight = Flight(work, after=tuple(self._ending.get(key, ())))
            self._flights[key] = flight
            flight.task.add_done_callback(partial(self._clear, key, flight))
        flight.waiters += 1
        try:
            await asyncio.wait({flight.task})
        finally:
            flight.waiters -= 1
            self._check_abandoned(key, flight)
        return Landing(led, flight.task)

    def _check_abandoned(self, key: bytes, flight: Flight[Result]) -> None:
        if flight.waiters or flight.task.done():
            return
        grace_period = flight.grace_period()
        if grace_period == math.inf:
            self._on_abandoned("continued")
        elif grace_period > 0:
            asyncio.get_running_loop().call_later(grace_period, self._stop, key, flight)
        else:
            self._stop(key, flight)

    def _stop(self, key: bytes, flight: Flight[Result]) -> None:
        if flight.waiters or flight.task.done() or self._flights.get(key) is not flight:
            return  # a waiter came back, or it has ended
        if flight.grace_period() == math.inf:
            return  # it has come far enough in the meantime
        del self._flights[key]
        self._ending.setdefault(key, set()).add(flight.task)
        flight.task.cancel()
        self._on_abandoned("stopped" if flight.begun else "dropped")

    def _clear(self, key: bytes, flight: Flight[Result], task: asyncio.Task[Result]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if (ending := self._ending.get(key)) is not None:
            ending.discard(task)
            if not ending:
                del self._ending[key]
        if not task.cancelled():
            # Mark the exception as seen even when every waiter has left.
            task.exception()

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
        while tasks := [
            *(flight.task for flight in self._flights.values()),
            *(task for ending in self._ending.values() for task in ending),
        ]:
            await asyncio.wait(tasks)
