"""Serves compiles: key, lookup, flight, work, response."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.blobs.content_checks import stored_content
from lazyfx_server.compiling.catalog import Catalog, CompiledModule
from lazyfx_server.compiling.dispatch.crashes import Subject
from lazyfx_server.compiling.dispatch.job_parts import Buffer, CompileParts
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights
from lazyfx_server.compiling.flights.leased_flight import Work
from lazyfx_server.compiling.flights.single_flight import Flight, Outcome, SingleFlight
from lazyfx_server.compiling.forwarding.forwarded_modules import ForwardedModules
from lazyfx_server.compiling.forwarding.forwarding import Forwarding
from lazyfx_server.compiling.generation_costs import CodegenCosts
from lazyfx_server.compiling.limits.admission import Admission, QueuedJob
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.limits.request_checks import check_body
from lazyfx_server.compiling.limits.urgency import Urgency
from lazyfx_server.compiling.miss_reasons import MADE_ELSEWHERE, Explainer, Miss
from lazyfx_server.compiling.pipelines import Pipelines
from lazyfx_server.compiling.request import (
    IncomingCompile,
    RequestReader,
    ResolvedRequest,
    fares_better_alone,
    kind_of_job,
    unknown_token,
)
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import MissingInputsError
from lazyfx_server.settings.limits import PassLimits, RequestLimits
from lazyfx_server.store import Store
from lazyfx_server.telemetry import (
    CompileFinished,
    FlightAbandoned,
    LookupMade,
    Observer,
    OverheadSpent,
    PassFinished,
    Reused,
)
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)


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
        store: Graph bodies and tensor values by digest.
        jobs: Runs work in worker processes.
        admission: Bounds that work.
        pipelines: Resolves pass lists.
        observer: Receives events.
        limits: Bounds on requests and jobs.
        quotas: Quotas of tenants.
        costs: Measured costs of code generation per graph.
        fleet: Flights of the servers that share a store.
        plugins: Object references by which workers find plugins.
        forwarding: Asks the upstream before anything is compiled here; None without one.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        store: Store,
        jobs: Jobs,
        admission: Admission,
        pipelines: Pipelines,
        explainer: Explainer,
        observer: Observer,
        limits: RequestLimits,
        quotas: Quotas,
        costs: CodegenCosts,
        fleet: FleetFlights,
        plugins: Sequence[str] = (),
        forwarding: Forwarding | None = None,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._jobs = jobs
        self._admission = admission
        self._pipelines = pipelines
        self._explainer = explainer
        self._observer = observer
        self._limits = limits
        self._quotas = quotas
        self._costs = costs
        self._fleet = fleet
        self._plugins = plugins
        self._forwarding: ForwardedModules | None = None
        if forwarding is not None:
            self._forwarding = ForwardedModules(
                forwarding, catalog, store, pipelines, explainer, observer
            )
        self._flights: SingleFlight[_FlightResult] = SingleFlight(self._on_abandoned)
        self._reader = RequestReader(limits, pipelines, store if fleet.shares else None)

    @property
    def in_flight(self) -> int:
        """Number of distinct compiles in flight."""
        return len(self._flights)

    def in_memory(self, token: bytes, tenant: Tenant) -> CompiledModule | None:
        """The module that a request by token asks for, if nothing has to be waited for."""
        known = self._reader.known(token, tenant)
        return None if known is None else self._catalog.recent(tenant, known.digest)

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

    def _on_abandoned(self, outcome: Outcome) -> None:
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
                    await self._require_blobs(request, resolved.tenant)
                    if asked := await self._ask_upstream(incoming, resolved, miss, flight):
                        return asked
                    return _FlightResult(await self._make(incoming, resolved, miss, flight), miss)
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
        return self._forwarding is not None and self._forwarding.is_outdated(module)

    async def _ask_upstream(
        self,
        incoming: IncomingCompile,
        resolved: ResolvedRequest,
        miss: Miss,
        flight: Flight[_FlightResult],
    ) -> _FlightResult | None:
        """The module as the upstream has or makes it; None to compile it here."""
        if self._forwarding is None:
            return None
        asked = await self._forwarding.make(incoming, resolved, miss, flight)
        if asked is not None:
            return _FlightResult(asked.module, asked.miss)
        if incoming.request.skip_cache_lookup:
            return None
        # One that the upstream can no longer sign is better than none.
        kept = await self._catalog.find(resolved.tenant, resolved.digest)
        return _FlightResult(kept, None) if isinstance(kept, CompiledModule) else None

    async def _make(
        self,
        incoming: IncomingCompile,
        resolved: ResolvedRequest,
        miss: Miss,
        flight: Flight[_FlightResult],
    ) -> CompiledModule:
        request, key, tenant = incoming.request, resolved.key, resolved.tenant
        queued_job = QueuedJob(tenant.name, kind_of_job(incoming, key), flight.urgency)
        async with self._admission.slot(queued_job) as queued:
            flight.mark_running()
            # Created only now, so that a queued job costs no more than its request.
            job = await self._job(incoming, tenant)
            # Only a miss that is compiled counts: a digest whose graph is missing is requested
            # again immediately.
            reason = pb.MissReason.Name(miss.reason)
            self._observer.observe(LookupMade("miss", reason, tenant.name))
            with self._quotas.charge_work(tenant):
                result = await self._jobs.compile(job, tenant.name, Subject(key.tenant, key.graph))
        flight.mark_finishing()
        report = result.report
        report.queue_seconds = queued
        report.created.GetCurrentTime()
        if request.HasField("graph"):
            await self._store.put(tenant.blob(key.graph), bytes(incoming.body))
        module = await self._catalog.add(tenant, resolved.digest, key, result)
        await self._explainer.remember(key)
        self._observe_compile(incoming, resolved, result)
        return module

    async def _require_blobs(self, request: pb.CompileRequest, tenant: Tenant) -> None:
        """Report missing blobs at once, before waiting for anything.

        Raises:
            MissingInputsError: Names the blobs.
        """
        digests = {binding.content.sha256 for binding in request.values}
        if not request.HasField("graph"):
            digests.add(request.graph_digest.sha256)
        if not digests:
            return
        places = {tenant.blob(digest): digest for digest in digests}
        present = await self._store.contains(places)
        missing = sorted(digest for place, digest in places.items() if place not in present)
        if missing:
            subjects = [f"blobs/{digest.hex()}" for digest in missing]
            raise MissingInputsError("upload these blobs and try again", subjects)

    async def _job(self, incoming: IncomingCompile, tenant: Tenant) -> CompileParts:
        """Collect what the worker needs, or report what is missing."""
        request = incoming.request
        missing: list[str] = []
        body: Buffer | None = incoming.body
        if not request.HasField("graph"):
            digest = request.graph_digest.sha256
            body = await stored_content(self._store, tenant.blob(digest), digest)
            if body is None:
                missing.append(f"blobs/{digest.hex()}")
            else:
                check_body("graph_digest", body, self._limits)
        values: list[tuple[int, int, Buffer]] = []
        for binding in request.values:
            content = binding.content.sha256
            data = await stored_content(self._store, tenant.blob(content), content)
            if data is None:
                missing.append(f"blobs/{content.hex()}")
            else:
                values.append((binding.graph, binding.attribute, data))
        if missing or body is None:
            raise MissingInputsError("upload these blobs and try again", missing)
        measured = self._costs.of(tenant.tag, request.graph_digest.sha256)
        job = worker.CompileJob(
            passes=self._pipelines.expand(request.passes),
            plugins=self._plugins,
            limits=worker.JobLimits(**dict(PassLimits.of(self._limits))),
            presentation=request.graph.presentation,
            eager=request.eager,
            verify=request.verify,
            seconds_per_node=measured,
            cost_is_measured=measured > 0,
        )
        return CompileParts(job, body, values)

    def _observe_compile(
        self, incoming: IncomingCompile, resolved: ResolvedRequest, result: worker.CompileResult
    ) -> None:
        report = result.report
        passes: Sequence[PassFinished] = [
            PassFinished(p.name, p.seconds, p.recompiles.requested, p.recompiles.performed, p.runs)
            for p in report.passes
        ]
        in_passes = sum(p.requested for p in passes)
        _log.debug(
            "compiled graph %s: pipeline=%s nodes=%d->%d seconds=%.3f queue_seconds=%.3f tenant=%s",
            resolved.key.graph.hex(),
            report.pipeline or "(no passes)",
            report.nodes_before,
            report.nodes_after,
            report.seconds,
            report.queue_seconds,
            resolved.tenant.name or "-",
        )
        self._observer.observe(
            CompileFinished(
                seconds=report.seconds,
                pass_seconds=report.pass_seconds,
                codec_seconds=result.codec_seconds,
                queue_seconds=report.queue_seconds,
                overhead_seconds=max(
                    0.0, time.perf_counter() - incoming.arrived - report.pass_seconds
                ),
                saved_seconds=report.saved_seconds,
                passes=tuple(passes),
                pipeline_requested=report.recompiles.requested - in_passes,
                performed=tuple((p.pass_name, p.trigger, p.count) for p in result.performed),
                performed_seconds=report.performed_seconds,
                saved_is_measured=report.saved_basis == pb.ESTIMATE_BASIS_MEASURED,
                tenant=resolved.tenant.name,
            )
        )
