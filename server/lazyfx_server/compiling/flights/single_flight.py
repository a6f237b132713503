"""Single flight: identical requests share one lookup and one execution.

An asynchronous lookup must be part of the flight as well: otherwise another flight could end
between a failed lookup and the start of a flight.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

from lazyfx_server.compiling.limits.urgency import JointUrgency, Urgency
from lazyfx_server.telemetry import Abandonment

Result = TypeVar("Result")

STOP_SECONDS: Final = 0.02
"""How long a running job may continue when no caller waits for it any more. A worker is killed
within 0.1 s after the last caller has left, which includes the time until the server notices."""

_NO_HURRY: Final = Urgency()


@dataclass(frozen=True, slots=True)
class Landing(Generic[Result]):
    """How a flight ended, for one of its waiters.

    Attributes:
        led: Whether this waiter started the flight; all others joined it.
        task: The finished work.
    """

    led: bool
    task: asyncio.Task[Result]

    @property
    def error(self) -> BaseException | None:
        """The exception that the work raised, if any."""
        return self.task.exception()

    def result(self) -> Result:
        """The result of the work.

        Raises:
            Exception: Whatever the work raised; all waiters get it.
        """
        return self.task.result()


class Flight(Generic[Result]):
    """One execution and its waiters.

    The work reports its phase, which decides what happens when the last waiter leaves: if it has
    not begun, it is dropped; if it is running, it is stopped soon; if it only has to store its
    result, it continues.

    Args:
        work: Called with the flight.
        after: Tasks that must end before the work starts.
        urgency: The urgency of the first waiter.

    Attributes:
        urgency: That of all waiters together.
    """

    def __init__(
        self,
        work: Callable[[Flight[Result]], Awaitable[Result]],
        after: Collection[asyncio.Task[Result]],
        urgency: Urgency,
    ) -> None:
        self.waiters = 0
        self.begun = False
        self.urgency = JointUrgency(urgency)
        self.finishing = False
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
        """Mark the work as running.

        Args:
            grace_period: Called when the last waiter leaves: returns for how many seconds the work
                continues without waiters; infinity to finish it.
        """
        self.begun = True
        self._grace_period = grace_period

    def mark_finishing(self) -> None:
        """Mark the work as nearly done: the rest is quick and useful for the next caller."""
        self.finishing = True
        self.mark_running(lambda: math.inf)

    def grace_period(self) -> float:
        """For how many seconds the work would continue without waiters."""
        return self._grace_period()


class SingleFlight(Generic[Result]):
    """Runs work once per key in flight.

    A waiter that leaves (its call was cancelled or timed out) ends the flight only if it was the
    last one; see `Flight`.

    Args:
        on_abandoned: Called with the outcome of each flight whose last waiter has left.
    """

    def __init__(self, on_abandoned: Callable[[Abandonment], None]) -> None:
        self._on_abandoned = on_abandoned
        self._flights: dict[bytes, Flight[Result]] = {}
        # Cancelled but not yet finished: these must not be joined.
        self._ending: dict[bytes, set[asyncio.Task[Result]]] = {}

    def __len__(self) -> int:
        return len(self._flights) + sum(map(len, self._ending.values()))

    async def join(
        self,
        key: bytes,
        work: Callable[[Flight[Result]], Awaitable[Result]],
        urgency: Urgency = _NO_HURRY,
    ) -> Landing[Result]:
        """Wait for the flight of `key` to end, starting it with `work` if there is none.

        There is no await before it joins or starts the flight.
        """
        flight = self._flights.get(key)
        # A finished flight may not have been removed yet.
        led = flight is None or flight.task.done()
        if flight is None or led:
            # The cleanup of an earlier flight of the key must finish first.
            flight = Flight(work, tuple(self._ending.get(key, ())), urgency)
            self._flights[key] = flight
            flight.task.add_done_callback(partial(self._clear, key, flight))
        else:
            flight.urgency.add(urgency)
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
            return  # a new waiter joined, or it has ended
        if flight.grace_period() == math.inf:
            return  # it has progressed far enough in the meantime
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
            # Mark the exception as retrieved even if every waiter has left.
            task.exception()

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
        while tasks := [
            *(flight.task for flight in self._flights.values()),
            *(task for ending in self._ending.values() for task in ending),
        ]:
            await asyncio.wait(tasks)
