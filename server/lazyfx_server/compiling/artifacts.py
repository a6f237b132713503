"""Renders artifacts on demand: each once per set of names, then from the store."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.catalog import Catalog, CompiledModule
from lazyfx_server.compiling.dispatch.crashes import Subject
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights
from lazyfx_server.compiling.flights.leased_flight import Work
from lazyfx_server.compiling.flights.single_flight import Flight, Landing, Outcome, SingleFlight
from lazyfx_server.compiling.forwarding.forwarded_artifacts import ForwardedArtifacts
from lazyfx_server.compiling.forwarding.forwarding import Forwarding
from lazyfx_server.compiling.generation_costs import CodegenCosts
from lazyfx_server.compiling.key import artifact_digest
from lazyfx_server.compiling.limits.admission import Admission, QueuedJob
from lazyfx_server.compiling.limits.cost_estimates import JobKind
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.limits.urgency import Urgency
from lazyfx_server.compiling.native_artifacts import NativeCompiles
from lazyfx_server.compiling.request import is_about_leader
from lazyfx_server.compiling.stored_artifacts import StoredArtifacts, artifact_key
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import (
    InvalidRequestError,
    ModuleNotFoundInCacheError,
)
from lazyfx_server.jobs.artifact_kinds import ARTIFACT_KINDS, ArtifactKind, kind_name
from lazyfx_server.jobs.native.progress import progress_of
from lazyfx_server.security.signing import Signer
from lazyfx_server.store import Store
from lazyfx_server.telemetry import ArtifactServed, FlightAbandoned, Observer, RecompilesPerformed
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

# Before any has been measured.
_USUAL_SECONDS = 1.0
_USUAL_NATIVE_SECONDS = 40.0
# The graph itself is read only if it is needed.
_NODE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact ready to be sent."""

    kind: pb.ArtifactKind.ValueType
    data: bytes
    digest: graph_pb2.Digest
    media_type: str
    rendered: bool
    render_seconds: float
    recompiles: pb.Recompiles
    signature: pb.ArtifactSignature
    kernels: worker.KernelCounts | None


@dataclass(frozen=True, slots=True)
class _Found:
    """An artifact, and the seconds that rendering took unless it was in the store.

    Attributes:
        record: The artifact.
        seconds: Seconds.
        kernels: What became of the C++ sources of a native artifact that was built.
    """

    record: worker.ArtifactRecord
    seconds: float | None = None
    kernels: worker.KernelCounts | None = None


@dataclass(frozen=True, slots=True)
class _ResolvedRequest:
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


class Artifacts:
    """Serves the artifacts of compiled modules.

    Args:
        catalog: Compiled modules by key.
        store: Artifacts, compiled graphs and constants.
        jobs: Runs jobs in worker processes.
        admission: Bounds that work.
        observer: Receives events.
        signer: Signs artifacts.
        native: Compiles native artifacts.
        quotas: Quotas of tenants.
        costs: Records the cost of code generation per graph.
        fleet: Flights of the servers that share a store.
        max_source_bytes: Bound on the source of a module.
        forwarding: Asks the upstream before anything is made here; None without one.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        store: Store,
        jobs: Jobs,
        admission: Admission,
        observer: Observer,
        signer: Signer,
        native: NativeCompiles,
        quotas: Quotas,
        costs: CodegenCosts,
        fleet: FleetFlights,
        max_source_bytes: int,
        forwarding: Forwarding | None = None,
    ) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._admission = admission
        self._observer = observer
        stored = self._stored = StoredArtifacts(store, catalog, signer)
        self._native = native
        self._quotas = quotas
        self._costs = costs
        self._fleet = fleet
        self._max_source_bytes = max_source_bytes
        self._forwarding: ForwardedArtifacts | None = None
        if forwarding is not None:
            self._forwarding = ForwardedArtifacts(forwarding, catalog, stored, native)
        self._flights: SingleFlight[_Found] = SingleFlight(self._on_abandoned)

    @property
    def in_flight(self) -> int:
        """Number of distinct renderings in flight."""
        return len(self._flights)

    async def drain(self) -> None:
        """Wait until no rendering is in flight."""
        await self._flights.drain()

    async def get(
        self,
        request: pb.GetArtifactRequest,
        tenant: Tenant,
        time_left: Callable[[], float | None],
    ) -> Artifact:
        """Find or render one artifact.

        Args:
            request: Names it.
            tenant: Whose request it is.
            time_left: Returns the seconds until the deadline of the call; None without one.

        Raises:
            InvalidRequestError: A field is wrong.
            ModuleNotFoundInCacheError: The module, or its graph, is no longer cached.
            OverloadedError, TimedOutError, InternalError: As the names say.
        """
        if len(request.module_key) != hashlib.sha256().digest_size:
            raise InvalidRequestError.of_field(
                "module_key", "has the wrong length; use module_key of a CompileResponse"
            )
        urgency = Urgency.of(request.priority, time_left)
        kept = frozenset(request.kept_kernels)
        request.ClearField("kept_kernels")  # the flight is that of all callers
        kind = ARTIFACT_KINDS.get(request.kind)
        if kind is None:
            raise InvalidRequestError.of_field(
                "kind", f"{request.kind} is unknown; GetServerInfo lists the artifact kinds"
            )
        module = await self._catalog.find(tenant, request.module_key)
        if not isinstance(module, CompiledModule):
            raise ModuleNotFoundInCacheError(
                "no compiled module has this key, or it was evicted; compile again"
            )
        if kind.maker == "compile":
            record = await self._stored.made_by_compile(module, request)
            seconds = kernels = None
        else:
            native = kind.maker == "native"
            variant = self._native.variant(request) if native else _names(request.presentation)
            resolved = _ResolvedRequest(request, module, kind, variant)
            landing = await self._landing(resolved, urgency)
            record = landing.result().record
            seconds = landing.result().seconds if landing.led else None
            kernels = landing.result().kernels
            # What an upstream has signed is sent as it is.
            if kept and request.kind == pb.ARTIFACT_KIND_INDUCTOR and self._forwarding is None:
                record = await self._stored.without_kernels(record, module, request.kind, kept)
        name = kind_name(request.kind)
        if seconds is not None:
            _log.debug(
                "rendered %s of module %s: seconds=%.3f tenant=%s",
                name,
                module.key.hex(),
                seconds,
                module.tenant.name or "-",
            )
        self._observer.observe(
            ArtifactServed(
                kind=name,
                source="cached" if seconds is None else "rendered",
                bytes=max(0, len(record.data) - request.offset),
                seconds=seconds or 0.0,
            )
        )
        return Artifact(
            kind=request.kind,
            data=record.data,
            digest=record.digest,
            media_type=record.media_type,
            rendered=seconds is not None,
            render_seconds=seconds or 0.0,
            recompiles=module.report.recompiles,
            signature=self._signature(record, module, request.kind),
            kernels=kernels,
        )

    def _signature(
        self, record: worker.ArtifactRecord, module: CompiledModule, kind: int
    ) -> pb.ArtifactSignature:
        if self._forwarding is None:
            return record.signature
        return self._forwarding.signature(record, module, kind)

    async def _landing(self, resolved: _ResolvedRequest, urgency: Urgency) -> Landing[_Found]:
        """Wait for the artifact, in a flight whose deadline is not too short."""
        place, work = resolved.place(resolved.message.kind), partial(self._find_or_make, resolved)
        while True:
            landing = await self._flights.join(place, work, urgency)
            if landing.led or not is_about_leader(landing.error):
                return landing

    def progress(self, request: pb.GetArtifactRequest, tenant: Tenant) -> pb.ArtifactProgress:
        """The progress of a native artifact that `get` is waiting for."""
        variant = self._native.variant(request)
        module = self._catalog.in_memory(tenant, request.module_key)
        key = request.module_key if module is None else module.own_digest
        place = artifact_digest(key, request.kind, variant)
        reported = None if self._forwarding is None else self._forwarding.progress(place)
        if reported is not None:
            return reported
        # Made here, or on a server that this one waits for.
        if note := self._fleet.note(artifact_key(place)):
            return progress_of(note)
        return self._native.progress(place)

    def _on_abandoned(self, outcome: Outcome) -> None:
        self._observer.observe(FlightAbandoned("render", outcome))

    async def _find_or_make(self, resolved: _ResolvedRequest, flight: Flight[_Found]) -> _Found:
        module, kind = resolved.module, resolved.message.kind
        place, native = resolved.place(kind), resolved.kind.maker == "native"
        find = partial(self._find, resolved)
        if found := await find():
            return _Found(found)
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
        return _Found(ours.found)

    async def _find(self, resolved: _ResolvedRequest) -> worker.ArtifactRecord | None:
        """The artifact in the store, unless the upstream has to sign it again."""
        kind = resolved.message.kind
        found = await self._stored.find(resolved.place(kind), resolved.module, kind)
        if found is not None and self._forwarding is not None:
            return None if self._forwarding.is_outdated(found) else found
        return found

    async def _ask_upstream(
        self, resolved: _ResolvedRequest, flight: Flight[_Found]
    ) -> _Found | None:
        """The artifact as the upstream has or makes it; None to make it here."""
        if self._forwarding is None:
            return None
        request, module, place = (
            resolved.message,
            resolved.module,
            resolved.place(resolved.message.kind),
        )
        started = time.monotonic()
        record = await self._forwarding.make(request, module, place, flight)
        if record is not None:
            return _Found(record, time.monotonic() - started)
        # One that the upstream can no longer sign is better than none.
        kept = await self._stored.find(place, module, request.kind)
        return None if kept is None else _Found(kept)

    async def _make_native(
        self,
        resolved: _ResolvedRequest,
        graph: graph_pb2.CompiledGraph,
        flight: Flight[_Found],
        queued_job: QueuedJob,
    ) -> _Found:
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
        return _Found(record, result.seconds, result.kernels)

    async def _render(
        self,
        resolved: _ResolvedRequest,
        graph: graph_pb2.CompiledGraph,
        flight: Flight[_Found],
        queued_job: QueuedJob,
    ) -> _Found:
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
        return _Found(record, result.seconds)

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


def _names(presentation: graph_pb2.Presentation) -> bytes:
    return hashlib.sha256(presentation.SerializeToString(deterministic=True)).digest()


def _subject(module: CompiledModule) -> Subject:
    return Subject(module.tenant.tag, module.record.graph_digest)
