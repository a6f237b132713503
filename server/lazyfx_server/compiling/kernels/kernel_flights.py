"""One compile for each kernel: of all jobs of a server, and of servers that share a store."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeAlias

from lazyfx_server.compiling.flights.fleet_flights import FleetFlights
from lazyfx_server.compiling.flights.leased_flight import Work
from lazyfx_server.compiling.flights.single_flight import Flight, Landing, SingleFlight
from lazyfx_server.compiling.kernels.kernel_store import MAX_KEPT_BYTES, KernelPlace, KernelStore
from lazyfx_server.compiling.limits.cost_estimates import JobKind
from lazyfx_server.telemetry import (
    Abandonment,
    FlightAbandoned,
    KernelProvided,
    KernelSource,
    Observer,
)
from lazyfx_server.v1 import worker_pb2 as worker

Compile: TypeAlias = Callable[[], Awaitable[worker.BuildResult]]
"""Compiles a kernel."""

Turn: TypeAlias = Callable[[], AbstractAsyncContextManager[Compile]]
"""Waits for a compiler, which is free for the compile that it yields until the context ends."""

MayKeep: TypeAlias = Callable[[worker.BuildResult], Awaitable[bool]]
"""Whether the result of a compile may be stored for others."""

_USUAL_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Provided:
    """A kernel, and what it cost.

    Attributes:
        result: The answer of the compile worker, or as it was stored.
        source: "found" in the store; "joined" the compile for another job; "compiled" for this one;
            or "failed": the compiler refused the source.
        seconds: Seconds that its compile took, now or back then.
    """

    result: worker.BuildResult
    source: KernelSource
    seconds: float


@dataclass(frozen=True, slots=True)
class _Made:
    """What a flight ends with: `compiled` in it, or found."""

    result: worker.BuildResult
    seconds: float
    compiled: bool


class Elsewhere(Protocol):
    """The kernels of another process, for one job; unreachable ones are as unknown ones."""

    async def find(self, key: bytes) -> worker.KernelRecord | None:
        """A kernel, if it is known there."""

    def give(self, key: bytes, record: worker.KernelRecord) -> None:
        """Give it a kernel; returns before the kernel has arrived."""


class KernelFlights:
    """Provides kernels from the store, or compiles them, each once.

    A compile for which no job waits any more is stopped.

    Args:
        kernels: The kernels in the store.
        fleet: The flights of the servers that share it.
        observer: Told of each kernel that a job asked for.
    """

    def __init__(self, kernels: KernelStore, fleet: FleetFlights, observer: Observer) -> None:
        self._kernels = kernels
        self._fleet = fleet
        self._observer = observer
        self._flights: SingleFlight[_Made] = SingleFlight(self._on_abandoned)

    @property
    def in_flight(self) -> int:
        """Number of kernels that are looked up or compiled."""
        return len(self._flights)

    async def find(self, key: bytes, scope: bytes) -> worker.KernelRecord | None:
        """A kernel, if it is in the store; see `provide`."""
        return await self._kernels.find(self._kernels.place(key, scope))

    async def add(self, key: bytes, scope: bytes, record: worker.KernelRecord) -> None:
        """Store a kernel that was compiled elsewhere; see `provide`."""
        await self._kernels.add(self._kernels.place(key, scope), record)

    async def provide(
        self,
        key: bytes,
        scope: bytes,
        turn: Turn,
        may_keep: MayKeep,
        elsewhere: Elsewhere | None = None,
    ) -> Provided:
        """A kernel from the store; compiled if it is not there.

        Args:
            key: Covers everything that it depends on.
            scope: Whose kernels it belongs to; see `KernelStore.place`.
            turn: Waits for a compiler, and compiles it.
            may_keep: Asked before the result is stored.
            elsewhere: More kernels of this scope, also of this one when it is stored.

        Raises:
            CallRefused: `turn` raised it, for this job or for the one that it joined.
        """
        place = self._kernels.place(key, scope)
        work = partial(self._find_or_make, place, key, turn, may_keep, elsewhere)
        landing = await self._flights.join(place.key.encode(), work)
        made = landing.result()
        provided = Provided(made.result, _source(landing, made), made.seconds)
        saved = made.seconds if provided.source in ("found", "joined") else 0.0
        spent = made.seconds if landing.led and made.compiled else 0.0
        self._observer.observe(KernelProvided(provided.source, spent, saved))
        return provided

    async def _find_or_make(
        self,
        place: KernelPlace,
        key: bytes,
        turn: Turn,
        may_keep: MayKeep,
        elsewhere: Elsewhere | None,
        flight: Flight[_Made],
    ) -> _Made:
        find = partial(self._find, place)
        if found := await find():
            return found
        if elsewhere is not None and (record := await elsewhere.find(key)):
            await self._kernels.add(place, record)
            return _known(record)
        job = JobKind(key, b"kernel", 0)
        work = Work(place.key, "kernel", job, find, _USUAL_SECONDS)
        # The compiler first: whoever holds the lease compiles, and nobody waits for one that waits.
        async with turn() as compile_it, self._fleet.flight(work, flight) as ours:
            if ours.found is None:
                began = time.monotonic()
                flight.mark_running()
                result = await compile_it()
                flight.mark_finishing()
                made = _Made(result, time.monotonic() - began, compiled=True)
                fits = len(result.output) <= MAX_KEPT_BYTES
                if fits and not result.failed and await may_keep(result):
                    record = worker.KernelRecord(output=result.output, seconds=made.seconds)
                    await self._kernels.add(place, record)
                    if elsewhere is not None:
                        elsewhere.give(key, record)
                return made
        assert ours.found is not None, "found, or made and returned"
        return ours.found

    async def _find(self, place: KernelPlace) -> _Made | None:
        record = await self._kernels.find(place)
        return None if record is None else _known(record)

    def _on_abandoned(self, outcome: Abandonment) -> None:
        self._observer.observe(FlightAbandoned("kernel", outcome))


def _known(record: worker.KernelRecord) -> _Made:
    return _Made(worker.BuildResult(output=record.output), record.seconds, compiled=False)


def _source(landing: Landing[_Made], made: _Made) -> KernelSource:
    if made.result.failed:
        return "failed"
    if not made.compiled:
        return "found"
    return "compiled" if landing.led else "joined"
