"""Serves artifacts: each is made once per set of names, or of conditions if it is native."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lazyfx.shared.artifact_statements import kind_name
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.artifact_making import ArtifactMaker, FoundArtifact, ResolvedArtifact
from lazyfx_server.compiling.catalog import Catalog, CompiledModule
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights
from lazyfx_server.compiling.flights.single_flight import Landing, SingleFlight
from lazyfx_server.compiling.forwarding.forwarded_artifacts import ForwardedArtifacts
from lazyfx_server.compiling.key import artifact_digest
from lazyfx_server.compiling.limits.urgency import Urgency
from lazyfx_server.compiling.native_artifacts import NativeCompiles
from lazyfx_server.compiling.request import is_about_leader
from lazyfx_server.compiling.stored_artifacts import StoredArtifacts, artifact_key
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import InvalidRequestError, ModuleNotFoundInCacheError
from lazyfx_server.jobs.artifact_kinds import ARTIFACT_KINDS, ArtifactKind
from lazyfx_server.jobs.native.progress import progress_of
from lazyfx_server.telemetry import Abandonment, ArtifactServed, FlightAbandoned, Observer
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)


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


class Artifacts:
    """Serves the artifacts of compiled modules.

    Args:
        catalog: Compiled modules by key.
        stored: Artifacts in the store.
        maker: Makes those that are not there.
        native: Knows of native compiles under way.
        fleet: Knows of work of other servers.
        observer: Receives events.
        forwarded: Knows of work of the upstream; None without one.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        stored: StoredArtifacts,
        maker: ArtifactMaker,
        native: NativeCompiles,
        fleet: FleetFlights,
        observer: Observer,
        forwarded: ForwardedArtifacts | None = None,
    ) -> None:
        self._catalog = catalog
        self._stored = stored
        self._maker = maker
        self._native = native
        self._fleet = fleet
        self._observer = observer
        self._forwarded = forwarded
        self._flights: SingleFlight[FoundArtifact] = SingleFlight(self._on_abandoned)

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
        urgency = Urgency.of(request.priority, time_left)
        kind = _kind_of(request)
        kept = request.kept_kernels
        request.ClearField("kept_kernels")  # the flight is that of all callers
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
            resolved = ResolvedArtifact(request, module, kind, variant)
            landing = await self._landing(resolved, urgency)
            record = landing.result().record
            seconds = landing.result().seconds if landing.led else None
            kernels = landing.result().kernels
            # What an upstream has signed is sent as it is.
            if kept and request.kind == pb.ARTIFACT_KIND_INDUCTOR and self._forwarded is None:
                record = await self._stored.without_kernels(record, module, request.kind, kept)
        self._report(request, module, len(record.data), seconds)
        return self._artifact(record, module, request, seconds, kernels)

    def _artifact(
        self,
        record: worker.ArtifactRecord,
        module: CompiledModule,
        request: pb.GetArtifactRequest,
        seconds: float | None,
        kernels: worker.KernelCounts | None,
    ) -> Artifact:
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

    async def find(
        self, request: pb.GetArtifactRequest, module: CompiledModule
    ) -> ResolvedArtifact | None:
        """Resolve a request for a native artifact; None if the store has none.

        Raises:
            InvalidRequestError: A field is wrong.
            FailedPreconditionError: Artifacts of this server do not run there.
        """
        variant = self._native.variant(request)
        resolved = ResolvedArtifact(request, module, ARTIFACT_KINDS[request.kind], variant)
        place = artifact_key(resolved.store_key(request.kind))
        return resolved if await self._stored.has(place) else None

    async def read(
        self, resolved: ResolvedArtifact, *, max_bytes: int, without_libraries: bool
    ) -> Artifact | None:
        """Read a native artifact that `find` has found.

        Args:
            resolved: From `find`.
            max_bytes: Its bytes at most.
            without_libraries: Name its libraries by their digests.

        Returns:
            None if it is larger, or has been evicted in the meantime.
        """
        module, kind = resolved.module, resolved.message.kind
        record = await self._stored.find(resolved.store_key(kind), module, kind)
        if record is None:
            return None
        # What an upstream has signed is sent as it is.
        if without_libraries and self._forwarded is None:
            record = await self._stored.without_kernels(record, module, kind, None)
        if len(record.data) > max_bytes:
            return None
        size = len(record.data)
        self._observer.observe(ArtifactServed(kind_name(kind), "prefetched", size))
        return self._artifact(record, module, resolved.message, None, None)

    def _report(
        self,
        request: pb.GetArtifactRequest,
        module: CompiledModule,
        size: int,
        seconds: float | None,
    ) -> None:
        """Log and count an artifact; `seconds` is None if it was not made for this request."""
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
                bytes=max(0, size - request.offset),
                seconds=seconds or 0.0,
            )
        )

    def _signature(
        self, record: worker.ArtifactRecord, module: CompiledModule, kind: int
    ) -> pb.ArtifactSignature:
        if self._forwarded is None:
            return record.signature
        return self._forwarded.signature(record, module, kind)

    async def _landing(
        self, resolved: ResolvedArtifact, urgency: Urgency
    ) -> Landing[FoundArtifact]:
        """Wait for the artifact, in a flight whose deadline is not too short."""
        key = resolved.store_key(resolved.message.kind)
        work = partial(self._maker.find_or_make, resolved)
        while True:
            landing = await self._flights.join(key, work, urgency)
            if landing.led or not is_about_leader(landing.error):
                return landing

    def progress(self, request: pb.GetArtifactRequest, tenant: Tenant) -> pb.ArtifactProgress:
        """The progress of a native artifact that `get` is waiting for."""
        variant = self._native.variant(request)
        module = self._catalog.in_memory(tenant, request.module_key)
        key = request.module_key if module is None else module.own_digest
        place = artifact_digest(key, request.kind, variant)
        reported = None if self._forwarded is None else self._forwarded.progress(place)
        if reported is not None:
            return reported
        # Made here, or on a server that this one waits for.
        if note := self._fleet.note(artifact_key(place)):
            return progress_of(note)
        return self._native.progress(place)

    def _on_abandoned(self, outcome: Abandonment) -> None:
        self._observer.observe(FlightAbandoned("render", outcome))


def _kind_of(request: pb.GetArtifactRequest) -> ArtifactKind:
    """The kind of artifact that is requested.

    Raises:
        InvalidRequestError: There is no such kind, or the module's key is malformed.
    """
    if len(request.module_key) != hashlib.sha256().digest_size:
        raise InvalidRequestError.of_field(
            "module_key", "has the wrong length; use module_key of a CompileResponse"
        )
    kind = ARTIFACT_KINDS.get(request.kind)
    if kind is None:
        raise InvalidRequestError.of_field(
            "kind", f"{request.kind} is unknown; GetServerInfo lists the artifact kinds"
        )
    return kind


def _names(presentation: graph_pb2.Presentation) -> bytes:
    return hashlib.sha256(presentation.SerializeToString(deterministic=True)).digest()
