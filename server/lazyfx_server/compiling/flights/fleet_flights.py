"""Flights of several servers: what all of them need is made by one.

Servers that share a store also share leases. A flight that has not found its result takes the
lease of the result's key, makes it, and ends the lease when the result is in the shared store.
Meanwhile the flights of other servers wait for it. A lease that ends without a result is taken by a
server that waits. If a holder takes far too long, a server that waits makes the result as well. A
server that gets no answer about leases works as if it were alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from lazyfx_server.compiling.flights.leased_flight import LeasedFlight, LoneFlight, Shared, Work
from lazyfx_server.compiling.flights.single_flight import Flight
from lazyfx_server.compiling.limits.cost_estimates import PASS_JOBS, CostEstimates
from lazyfx_server.store import SLOWEST_BYTES, Leases, TieredStore
from lazyfx_server.telemetry import FleetFlightEnded, FleetOutcome, Observer

Result = TypeVar("Result")

# After this many times the usual duration, another server makes it as well.
_HEDGE_FACTOR: Final = 3.0


@dataclass(frozen=True)
class FleetSettings:
    """How servers wait for each other.

    Attributes:
        hedge_seconds: How long a server waits at least before it makes a result as well.
        publish_seconds: For how long an answer waits until other servers can find the result.
    """

    hedge_seconds: float = 10.0
    publish_seconds: float = 0.05


class FleetFlights:
    """The flights of this server, seen from the servers that it shares a store with.

    Args:
        leases: The leases of all servers; None if this server shares none.
        store: The store of results, over the shared one.
        observer: Told how flights end.
        settings: How servers wait for each other.
    """

    def __init__(
        self,
        leases: Leases | None,
        store: TieredStore | None,
        observer: Observer,
        settings: FleetSettings,
    ) -> None:
        self._shared = None
        if leases is not None and store is not None:
            self._shared = Shared(leases, store, settings.publish_seconds)
        self._observer = observer
        self._settings = settings
        self._estimates = CostEstimates(PASS_JOBS)

    @property
    def shares(self) -> bool:
        """Whether this server shares a store that keeps leases."""
        return self._shared is not None

    def flight(self, work: Work[Result] | None, flight: Flight[Any]) -> LoneFlight[Result]:
        """The part that this server takes in making a result; all of it without `work`."""
        if self._shared is None or work is None:
            return LoneFlight()
        usual = max(work.usual_seconds, self._estimates.of(work.job).seconds)
        patience = max(self._settings.hedge_seconds, _HEDGE_FACTOR * usual)
        return LeasedFlight(self._shared, work, flight, patience, self._record)

    def note(self, place: str) -> bytes:
        """What another server tells about a result that this one waits for; empty if nothing."""
        return b"" if self._shared is None else self._shared.notes.get(place, b"")

    async def publish(self, keys: Iterable[str], size: int) -> None:
        """Wait until other servers can find what is stored under these keys, but not for long.

        Args:
            keys: The store keys.
            size: Bytes of what is stored there; more may take longer.
        """
        if self._shared is not None:
            seconds = self._settings.publish_seconds + size / SLOWEST_BYTES
            await self._shared.publish(keys, seconds)

    async def drain(self) -> None:
        """Wait until the leases of flights that have ended have ended, too."""
        if self._shared is not None and self._shared.ending:
            await asyncio.wait(self._shared.ending)

    def _record(self, work: Work[Any], outcome: FleetOutcome | None, seconds: float | None) -> None:
        if seconds is not None:
            self._estimates.record(work.job, seconds)
        if outcome is not None:
            self._observer.observe(FleetFlightEnded(work.stage, outcome))
