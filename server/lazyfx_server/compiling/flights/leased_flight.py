"""One flight of a server that shares a store: its lease, its wait, and the end of both."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

from typing_extensions import Self

from lazyfx_server.compiling.flights.single_flight import Flight
from lazyfx_server.compiling.limits.cost_estimates import JobKind
from lazyfx_server.store import Lease, Leases, StoreError, TieredStore
from lazyfx_server.telemetry import FleetOutcome, Stage

Result = TypeVar("Result")

# How often a lease is renewed while it lasts.
_RENEWALS: Final = 3
# Seconds between two looks of a server that waits; the longer it has waited, the longer they are.
_FIRST_POLL_SECONDS: Final = 0.02
_LAST_POLL_SECONDS: Final = 0.25
# Work of this length is worth a look whether another server, which did not wait, was faster.
_LONG_SECONDS: Final = 2.0
# Seconds for which a lease outlives the work until the result is in the shared store.
_PUBLISH_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Work(Generic[Result]):
    """What a flight makes, if no server has made it.

    Attributes:
        place: The store key of the result.
        stage: What kind of flight it is, for metrics.
        job: What its duration depends on.
        find: Looks for the result in the store.
        usual_seconds: How long such work takes; longer, if a longer duration has been measured.
        note: What servers that wait are told about the work under way.
    """

    place: str
    stage: Stage
    job: JobKind
    find: Callable[[], Awaitable[Result | None]]
    usual_seconds: float = 1.0
    note: Callable[[], bytes] = lambda: b""


class Shared:
    """What the flights of a server have in common, if it shares a store.

    Args:
        leases: The leases of all servers.
        store: The store of results, over the shared one.
        publish_seconds: For how long an answer waits until other servers can find the result.

    Attributes:
        notes: What other servers tell about results that this one waits for, by place.
        ending: Ends leases.
    """

    def __init__(self, leases: Leases, store: TieredStore, publish_seconds: float) -> None:
        self.leases = leases
        self.publish_seconds = publish_seconds
        self.store = store
        self.notes: dict[str, bytes] = {}
        self.ending: set[asyncio.Task[None]] = set()

    async def publish(self, keys: Iterable[str], seconds: float) -> None:
        """Wait for some seconds until other servers can find what is stored under these keys."""
        await asyncio.wait({asyncio.ensure_future(self.store.flush(keys))}, timeout=seconds)


class LoneFlight(Generic[Result]):
    """One flight, as a context; this one has no other servers to wait for.

    Entering it waits for one's turn. Inside, make the result if it is not `found`, and put it in
    the store.

    Attributes:
        found: The result, if another server has made it.
        parts: Set to the store keys of what belongs to a result that is made here.
    """

    def __init__(self) -> None:
        self.found: Result | None = None
        self.parts: Sequence[str] = ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return False


class LeasedFlight(LoneFlight[Result]):
    """A flight of one of several servers.

    If another server's result arrives while the context makes its own, the context ends early, by a
    cancellation that does not leave it, and the result is `found`.

    Args:
        shared: What flights have in common.
        work: What it makes.
        flight: The flight of this server; it is not ended early once it is finishing.
        patience: Seconds that it waits at most.
        record: Called with its outcome, and the seconds that it took if the result was made here.
    """

    def __init__(
        self,
        shared: Shared,
        work: Work[Result],
        flight: Flight[Any],
        patience: float,
        record: Callable[[Work[Any], FleetOutcome | None, float | None], None],
    ) -> None:
        super().__init__()
        self._shared = shared
        self._work = work
        self._flight = flight
        self._patience = patience
        self._record = record
        self._outcome: FleetOutcome | None = None
        self._started = 0.0
        self._lease: Lease | None = None
        self._over = False
        self._published = asyncio.Event()
        self._left = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            self._outcome = await self._take_turn()
        except StoreError:
            self._outcome = "unleased"
        except BaseException:
            self._end_lease(publish=False)
            raise
        finally:
            self._shared.notes.pop(self._work.place, None)
        if self.found is not None:
            self._end_lease(publish=False)
        else:
            self._watching = asyncio.ensure_future(self._watch(asyncio.current_task()))
        self._started = time.monotonic()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._over = True
        outrun = self._outcome == "outrun" and kind is asyncio.CancelledError
        made = kind is None and self.found is None
        if self._watching is not None:
            self._end_lease(publish=made)
        if kind is None or outrun:
            spent = time.monotonic() - self._started if made else None
            self._record(self._work, self._outcome, spent)
        if outrun and (uncancel := getattr(asyncio.current_task(), "uncancel", None)):
            uncancel()  # from Python 3.11 on, a task counts the cancellations that are under way
        if made:
            # So that the caller, who may go on with another server, finds it there.
            await _happens_within(self._published, self._shared.publish_seconds)
        return outrun

    async def _take_turn(self) -> FleetOutcome:
        """Wait until this server has a lease, or the result is there, or it waits no longer.

        Raises:
            StoreError: There is no answer about the lease.
        """
        place, began = self._work.place, time.monotonic()
        if await self._take_lease():
            return "led" if self.found is None else "joined"
        while True:
            note = await self._shared.leases.holder(place)
            # The parts of a result arrive one by one, but all before the lease ends.
            if note is None or await self._shared.store.contains([place]):
                self.found = await self._work.find()
                if self.found is not None:
                    return "joined"
            if note is not None:
                self._shared.notes[place] = note
            elif await self._take_lease():
                return "taken_over" if self.found is None else "joined"
            waited = time.monotonic() - began
            if waited > self._patience and await self._may_hedge(waited):
                return "hedged"
            pause = min(max(_FIRST_POLL_SECONDS, waited / 5), _LAST_POLL_SECONDS)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter

    async def _may_hedge(self, waited: float) -> bool:
        """Whether to make the result as well: one of the servers that wait does, later all do."""
        if self._lease is None:
            place = f"hedges/{hashlib.sha256(self._work.place.encode()).hexdigest()}"
            self._lease = await self._shared.leases.take(place)
        return self._lease is not None or waited > 2 * self._patience

    async def _take_lease(self) -> bool:
        """Take the lease, and look again: its last holder may have made the result since."""
        self._lease = await self._shared.leases.take(self._work.place)
        if self._lease is None:
            return False
        self.found = await self._work.find()
        return True

    async def _watch(self, worker: asyncio.Task[Any] | None) -> None:
        """Renew the lease while the work is under way, and notice when another server was first."""
        began = time.monotonic()
        while not await _happens_within(self._left, self._shared.leases.seconds / _RENEWALS):
            alone = self._lease is not None
            if self._lease is not None:
                try:
                    alone = await self._shared.leases.renew(self._lease, self._work.note())
                except StoreError:
                    continue  # it may be there again next time
            if alone and time.monotonic() - began < _LONG_SECONDS:
                continue
            try:
                is_there = await self._shared.store.contains([self._work.place])
                found = await self._work.find() if is_there else None
            except StoreError:
                continue
            if found is None or self._over or self._flight.finishing:
                continue
            self.found, self._outcome = found, "outrun"
            if worker is not None:
                worker.cancel()
            return

    def _end_lease(self, *, publish: bool) -> None:
        """End the lease in the background; after the result has reached the shared store."""
        if self._lease is None and self._watching is None:
            return
        ending = asyncio.ensure_future(self._ended(self._lease, publish=publish))
        self._shared.ending.add(ending)
        ending.add_done_callback(self._shared.ending.discard)

    async def _ended(self, lease: Lease | None, *, publish: bool) -> None:
        if publish:
            await self._shared.publish({self._work.place, *self.parts}, _PUBLISH_SECONDS)
            self._published.set()
        self._left.set()
        if self._watching is not None:
            await asyncio.wait({self._watching})
        if lease is not None:
            with contextlib.suppress(StoreError):  # it ends by itself
                await self._shared.leases.release(lease)


async def _happens_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether an event is set in time."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        done, _ = await asyncio.wait({waiting}, timeout=seconds)
    finally:
        waiting.cancel()
    return bool(done)
