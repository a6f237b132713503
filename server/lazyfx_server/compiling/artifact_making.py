"""Makes an artifact that is not in the store: on another server, natively, or in a worker."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.catalog import Catalog, CompiledModule
from lazyfx_server.compiling.dispatch.crashes import Subject
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights
from lazyfx_server.compiling.flights.leased_flight import Work
from lazyfx_server.compiling.flights.single_flight import Flight
from lazyfx_server.compiling.forwarding.forwarded_artifacts import ForwardedArtifacts
from lazyfx_server.compiling.generation_costs import CodegenCosts
from lazyfx_server.compiling.key import artifact_digest
from lazyfx_server.compiling.limits.admission import Admission, QueuedJob
from lazyfx_server.compiling.limits.cost_estimates import JobKind
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.native_artifacts import NativeCompiles
from lazyfx_server.compiling.stored_artifacts import StoredArtifacts, artifact_key
from lazyfx_server.errors import FailedPreconditionError, RequestError, UnavailableError
from lazyfx_server.jobs.artifact_kinds import ARTIFACT_KINDS, ArtifactKind, kind_name
from lazyfx_server.telemetry import Observer, RecompilesPerformed
from lazyfx_server.v1 import worker_pb2 as worker

# Before any has been measured.
_USUAL_SECONDS = 1.0
_USUAL_NATIVE_SECONDS = 40.0
# The graph itself is read only if it is needed.
_NODE_BYTES = 32


@dataclass(frozen=True, slots=True)
class FoundArtifact:
    """An artifact, and the seconds that rendering took unless it was in the store."""

    record: worker.ArtifactRecord
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ResolvedArtifact:
    """A resolved request.

    Attributes:
        message: The request.
        module: The compiled module.
        kind: The row of its kind.
        variant: Distinguishes artifacts of this kind of the module: a digest of the caller's names,
            or of the caller's machine and settings.
    """

    message: pb.GetArtifactRequest
    module: CompiledModule
    kind: ArtifactKind
    variant: bytes

    def place(self, kind: pb.ArtifactKind.ValueType) -> bytes:
        """The store key of an artifact of a kind, for the same caller."""
        return artifact_digest(self.module.own_digest, kind, self.variant)


class ArtifactMaker:
    """Finds artifacts in the store, or makes them; one flight at a time for each of them.

    Args:
        stored: Artifacts in the store.
        catalog: Saves what was recompiled for an artifact.
        jobs: Runs jobs in worker processes.
        admission: Bounds that work.
        observer: Receives events.
        native: Compiles native artifacts.
        quotas: Quotas of tenants.
        costs: Records the cost of code generation per graph.
        fleet: Flights of the servers that share a store.
        max_source_bytes: Bound on the source of a module.
        forwarded: Asks the upstream before anything is made here; None without one.
    """

    def __init__(
        self,
        *,
        stored: StoredArtifacts,
        catalog: Catalog,
        jobs: Jobs,
        admission: Admission,
        observer: Observer,
        native: NativeCompiles,
        quotas: Quotas,
        costs: CodegenCosts,
        fleet: FleetFlights,
        max_source_bytes: int,
        forwarded: ForwardedArtifacts | None = None,
    ) -> None:
        self._stored = stored
        self._catalog = catalog
        self._jobs = jobs
        self._admission = admission
        self._observer = observer
        self._native = native
        self._quotas = quotas
        self._costs = costs
        self._fleet = fleet
        self._max_source_bytes = max_source_bytes
        self._forwarded = forwarded

    async def find_or_make(
        self, resolved: ResolvedArtifact, flight: Flight[FoundArtifact]
    ) -> FoundArtifact:
        """The work of the flight of an artifact.

        Args:
            resolved: What is requested.
            flight: The flight.

        Raises:
            ModuleNotFoundInCacheError: The graph is no longer cached.
            OverloadedError, TimedOutError, InternalError: As the names say.
        """
        module, kind = resolved.module, resolved.message.kind
        place, native = resolved.place(kind), resolved.kind.maker == "native"
        find = partial(self._find, resolved)
        if found := await find():
            return FoundArtifact(found)
        work = Work(
            artifact_key(place),
            "render",
            JobKind(place, kind_name(kind).encode(), _NODE_BYTES * module.report.nodes_after),
            find,
            _USUAL_NATIVE_SECONDS if native else _USUAL_SECONDS,
            lambda: self._native.progress(place).SerializeToString() if native else b"",
        )
        async with self._fleet.flight(work, flight) as ours:
            if ours.found is None:
                if asked := await self._ask_upstream(resolved, flight):
                    return asked
                body = await self._stored.graph(module)
                graph = graph_pb2.CompiledGraph.FromString(body)
                family = module.tenant.tag + kind_name(kind).encode()
                cost = JobKind(place, family, len(body))
                job = QueuedJob(module.tenant.name, cost, flight.urgency)
                make = self._make_native if native else self._render
                return await make(resolved, graph, flight, job)
        assert ours.found is not None, "found, or made and returned"
        return FoundArtifact(ours.found)

    async def _find(self, resolved: ResolvedArtifact) -> worker.ArtifactRecord | None:
        """The artifact in the store, unless the upstream has to sign it again."""
        kind = resolved.message.kind
        found = await self._stored.find(resolved.place(kind), resolved.module, kind)
        if found is not None and self._forwarded is not None:
            return None if self._forwarded.is_outdated(found) else found
        return found

    async def _ask_upstream(
        self, resolved: ResolvedArtifact, flight: Flight[FoundArtifact]
    ) -> FoundArtifact | None:
        """The artifact as the upstream has or makes it; None to make it here."""
        if self._forwarded is None:
            return None
        request, module, place = (
            resolved.message,
            resolved.module,
            resolved.place(resolved.message.kind),
        )
        started = time.monotonic()
        refusal: RequestError | None = None
        try:
            record = await self._forwarded.make(request, module, place, flight)
        except (UnavailableError, FailedPreconditionError) as error:
            record, refusal = None, error
        if record is not None:
            return FoundArtifact(record, time.monotonic() - started)
        # One that the upstream can no longer sign is better than none.
        kept = await self._stored.find(place, module, request.kind)
        if kept is None and refusal is not None:
            raise refusal
        return None if kept is None else FoundArtifact(kept)

    async def _make_native(
        self,
        resolved: ResolvedArtifact,
        graph: graph_pb2.CompiledGraph,
        flight: Flight[FoundArtifact],
        queued_job: QueuedJob,
    ) -> FoundArtifact:
        request, module = resolved.message, resolved.module
        self._native.require_buildable(request)
        place = resolved.place(request.kind)
        charge = self._quotas.charge_work(module.tenant)
        result = await self._native.make(
            place, graph, request, queued_job, _subject(module), flight, charge
        )
        flight.mark_finishing()
        record = await self._stored.add(place, result.data, result.media_type, module, request.kind)
        module.record_rendering(request.kind)
        return FoundArtifact(record, result.seconds)

    async def _render(
        self,
        resolved: ResolvedArtifact,
        graph: graph_pb2.CompiledGraph,
        flight: Flight[FoundArtifact],
        queued_job: QueuedJob,
    ) -> FoundArtifact:
        request, module = resolved.message, resolved.module
        source_kind = pb.ARTIFACT_KIND_SOURCE
        source_place = resolved.place(source_kind)
        # Source itself is rendered only if it is not stored.
        shares_source = resolved.kind.write is not None and request.kind != source_kind
        job = worker.RenderJob(
            kind=request.kind,
            graph=graph,
            presentation=request.presentation,
            purpose=request.purpose or request.kind,
            max_source_bytes=self._max_source_bytes,
        )
        if shares_source:
            source = await self._stored.find(source_place, module, source_kind)
            if source is not None:
                job.source.ParseFromString(source.data)
        if resolved.kind.holds_constants:
            for digest in module.record.constants:
                data = await self._stored.constant(module, digest)
                job.constants.add(digest=digest, data=data)
        async with self._admission.slot(queued_job):
            flight.mark_running()
            with self._quotas.charge_work(module.tenant):
                result = await self._jobs.render(job, module.tenant.name, _subject(module))
        flight.mark_finishing()
        record = await self._stored.add(
            resolved.place(request.kind), result.data, result.media_type, module, request.kind
        )
        if shares_source and result.HasField("source"):
            data = result.source.SerializeToString(deterministic=True)
            media_type = ARTIFACT_KINDS[source_kind].media_type
            await self._stored.add(source_place, data, media_type, module, source_kind)
        await self._record_recompiles(module, result)
        module.record_rendering(request.kind)
        return FoundArtifact(record, result.seconds)

    async def _record_recompiles(self, module: CompiledModule, result: worker.RenderResult) -> None:
        if not result.performed:
            return
        seconds = sum(p.seconds for p in result.performed)
        module.record_recompiles(sum(p.count for p in result.performed), seconds)
        await self._catalog.save(module)
        graph = module.record.graph_digest
        self._costs.record(module.tenant.tag, graph, result.seconds_per_node)
        for recompile in result.performed:
            self._observer.observe(
                RecompilesPerformed(
                    recompile.pass_name,
                    recompile.trigger,
                    recompile.count,
                    recompile.seconds,
                    module.tenant.name,
                )
            )


def _subject(module: CompiledModule) -> Subject:
    return Subject(module.tenant.tag, module.record.graph_digest)
