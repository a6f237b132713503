"""Serves compiles: lookup, flight, answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.catalog import Catalog, CompiledModule
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights
from lazyfx_server.compiling.flights.leased_flight import Work
from lazyfx_server.compiling.flights.single_flight import Flight, SingleFlight
from lazyfx_server.compiling.forwarding.forwarded_modules import ForwardedModules
from lazyfx_server.compiling.limits.urgency import Urgency
from lazyfx_server.compiling.miss_reasons import MADE_ELSEWHERE, Explainer, Miss
from lazyfx_server.compiling.module_making import ModuleMaker
from lazyfx_server.compiling.request import (
    IncomingCompile,
    RequestReader,
    ResolvedRequest,
    fares_better_alone,
    kind_of_job,
    unknown_token,
)
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.telemetry import (
    Abandonment,
    FlightAbandoned,
    LookupMade,
    Observer,
    OverheadSpent,
    Reused,
)


@dataclass(frozen=True, slots=True)
class _FlightResult:
    """A module, and the reason for the miss unless it was found.

    It is MADE_ELSEWHERE if another server compiled it while this flight waited.
    """

    module: CompiledModule
    miss: Miss | None

    @property
    def made_here(self) -> bool:
        return self.miss is not None and self.miss is not MADE_ELSEWHERE


class Compiler:
    """Compiles graphs, once per distinct request.

    Args:
        catalog: Compiled modules by key.
        reader: Determines what a request asks for.
        explainer: Finds the reason for a miss.
        maker: Compiles what is not cached.
        observer: Receives events.
        fleet: Flights of the servers that share a store.
        forwarded: Asks the upstream before anything is compiled here; None without one.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        reader: RequestReader,
        explainer: Explainer,
        maker: ModuleMaker,
        observer: Observer,
        fleet: FleetFlights,
        forwarded: ForwardedModules | None = None,
    ) -> None:
        self._catalog = catalog
        self._reader = reader
        self._explainer = explainer
        self._maker = maker
        self._observer = observer
        self._fleet = fleet
        self._forwarded = forwarded
        self._flights: SingleFlight[_FlightResult] = SingleFlight(self._on_abandoned)

    @property
    def in_flight(self) -> int:
        """Number of distinct compiles in flight."""
        return len(self._flights)

    def in_memory(self, token: bytes, tenant: Tenant) -> CompiledModule | None:
        """The module that a request by token asks for, if nothing has to be waited for."""
        known = self._reader.known(token, tenant)
        return None if known is None else self._catalog.recent(tenant, known.digest)

    async def find(self, request: pb.CompileRequest, tenant: Tenant) -> CompiledModule | None:
        """The module that a request without a graph and values asks for, if it is cached.

        Raises:
            InvalidRequestError: A field is wrong.
        """
        resolved = await self._reader.read_named(request, tenant, request.ByteSize())
        found = await self._catalog.find(tenant, resolved.digest)
        if isinstance(found, CompiledModule) and not self._is_outdated(found):
            return found
        return None

    async def compile(
        self, incoming: IncomingCompile, tenant: Tenant, time_left: Callable[[], float | None]
    ) -> bytes:
        """Serve one request of a tenant.

        Args:
            incoming: The request.
            tenant: The tenant.
            time_left: Returns the seconds until the deadline of the call; None without one.

        Returns:
            The bytes of a CompileResponse.

        Raises:
            InvalidRequestError: A field is wrong.
            MissingInputsError: The graph, or values that a pass reads, must be uploaded first.
            OverloadedError, TimedOutError, InternalError: As the names say.
        """
        request = incoming.request
        resolved = await self._reader.read(incoming, tenant)
        if not request.skip_cache_lookup:
            module = self._catalog.recent(tenant, resolved.digest)
            if module is not None:
                return await self._hit(module, incoming, resolved)
        urgency = Urgency.of(request.priority, time_left)
        while True:
            landing = await self._flights.join(
                resolved.digest, partial(self._find_or_make, incoming, resolved), urgency
            )
            if landing.led or not fares_better_alone(request, landing):
                break
        found = landing.result()
        if found.miss is None:
            return await self._hit(found.module, incoming, resolved)
        if landing.led and found.made_here:
            return found.module.answer(pb.CACHE_STATUS_MISS, found.miss)
        self._observer.observe(LookupMade("joined", tenant=tenant.name))
        self._observer.observe(Reused(found.module.report.seconds, tenant.name))
        return found.module.answer(pb.CACHE_STATUS_JOINED, found.miss)

    async def _hit(
        self, module: CompiledModule, incoming: IncomingCompile, resolved: ResolvedRequest
    ) -> bytes:
        tenant, spent = module.tenant.name, time.perf_counter() - incoming.arrived
        self._observer.observe(LookupMade("hit", tenant=tenant))
        self._observer.observe(Reused(module.report.seconds, tenant))
        self._observer.observe(OverheadSpent("key", spent, tenant))
        if incoming.request.request_token:
            return module.hit  # its caller has the token already
        await self._reader.keep(incoming, resolved)
        return module.hit_with(resolved.token)

    def _on_abandoned(self, outcome: Abandonment) -> None:
        self._observer.observe(FlightAbandoned("compile", outcome))

    async def drain(self) -> None:
        """Wait until no compile is in flight."""
        await self._flights.drain()

    async def _find_or_make(
        self,
        incoming: IncomingCompile,
        resolved: ResolvedRequest,
        flight: Flight[_FlightResult],
    ) -> _FlightResult:
        request = incoming.request
        damaged = False
        if not request.skip_cache_lookup:
            found = await self._catalog.find(resolved.tenant, resolved.digest)
            if isinstance(found, CompiledModule) and not self._is_outdated(found):
                return _FlightResult(found, None)
            if request.request_token:
                raise unknown_token(request.request_token)
            damaged = not isinstance(found, CompiledModule) and found.damaged
        # The flight uses the request until it ends, even if no caller waits any more.
        with incoming.hold:
            async with self._fleet.flight(self._work(incoming, resolved), flight) as ours:
                if ours.found is None:
                    miss = await self._explainer.explain(
                        resolved.key,
                        resolved.pipeline.spelling,
                        skipped=request.skip_cache_lookup,
                        damaged=damaged,
                    )
                    await self._maker.require_blobs(request, resolved.tenant)
                    made = await self._ask_upstream(incoming, resolved, miss, flight)
                    if made is None:
                        module = await self._maker.make(incoming, resolved, miss, flight)
                        made = _FlightResult(module, miss)
                    ours.parts = made.module.parts
                    return made
            assert ours.found is not None, "found, or made and returned"
            return _FlightResult(ours.found, MADE_ELSEWHERE)

    def _work(
        self, incoming: IncomingCompile, resolved: ResolvedRequest
    ) -> Work[CompiledModule] | None:
        """What servers that share a store make once; None for a request that wants its own."""
        if incoming.request.skip_cache_lookup:
            return None
        tenant = resolved.tenant

        async def find() -> CompiledModule | None:
            found = await self._catalog.find(tenant, resolved.digest)
            if isinstance(found, CompiledModule) and not self._is_outdated(found):
                return found
            return None

        job = kind_of_job(incoming, resolved.key)
        return Work(tenant.module(resolved.digest), "compile", job, find)

    def _is_outdated(self, module: CompiledModule) -> bool:
        return self._forwarded is not None and self._forwarded.is_outdated(module)

    async def _ask_upstream(
        self,
        incoming: IncomingCompile,
        resolved: ResolvedRequest,
        miss: Miss,
        flight: Flight[_FlightResult],
    ) -> _FlightResult | None:
        """The module as the upstream has or makes it; None to compile it here."""
        if self._forwarded is None:
            return None
        asked = await self._forwarded.make(incoming, resolved, miss, flight)
        if asked is not None:
            return _FlightResult(asked.module, asked.miss)
        if incoming.request.skip_cache_lookup:
            return None
        # One that the upstream can no longer sign is better than none.
        kept = await self._catalog.find(resolved.tenant, resolved.digest)
        return _FlightResult(kept, None) if isinstance(kept, CompiledModule) else None
