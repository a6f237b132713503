"""Rendering on demand: each artifact once, for each set of names, then from the store."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.artifact_kinds import (
    FROM_SOURCE,
    KINDS,
    NATIVE_KINDS,
    SOURCE_TYPE,
    WITH_CONSTANTS,
)
from lazyfx_server.compiling.blobs.content_checks import stored_content
from lazyfx_server.compiling.catalog import Catalog, CompiledModule
from lazyfx_server.compiling.dispatch.crashes import Subject
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.generation_costs import CodegenCosts
from lazyfx_server.compiling.key import artifact_digest
from lazyfx_server.compiling.limits.admission import Admission
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.native_artifacts import NativeCompiles
from lazyfx_server.compiling.single_flight import Flight, Outcome, SingleFlight
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import InternalError, InvalidRequestError, ModuleNotFoundInCacheError
from lazyfx_server.security.signing import Signer, StatementFacts
from lazyfx_server.store import Store
from lazyfx_server.telemetry import ArtifactServed, FlightAbandoned, Observer, RecompilesPerformed
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


@dataclass(frozen=True, slots=True)
class _Rendered:
    record: worker.ArtifactRecord
    seconds: float = 0.0
    made: bool = False


class Artifacts:
    """Serves the artifacts of compiled modules.

    Args:
        catalog: Compiled modules by key.
        store: Artifacts, compiled graphs and constants.
        jobs: Renders in worker processes.
        admission: Bounds that work.
        observer: Is told what happened.
        signer: States what each artifact is.
        native: Makes native artifacts.
        quotas: What each tenant may use.
        costs: Learns what generating code for a graph costs.
        max_source_bytes: Bound on the source of a module.
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
        max_source_bytes: int,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._jobs = jobs
        self._admission = admission
        self._observer = observer
        self._signer = signer
        self._native = native
        self._quotas = quotas
        self._costs = costs
        self._max_source_bytes = max_source_bytes
        self._flights: SingleFlight[_Rendered] = SingleFlight(self._on_abandoned)

    @property
    def in_flight(self) -> int:
        """Distinct renderings under way."""
        return len(self._flights)

    async def drain(self) -> None:
        """Wait until nothing is being rendered."""
        await self._flights.drain()

    async def get(self, request: pb.GetArtifactRequest, tenant: Tenant) -> Artifact:
        """Find or render one artifact.

        Raises:
            InvalidRequestError: A field is wrong.
            ModuleNotFoundInCacheError: The module, or its graph, is not there any more.
            OverloadedError, TimedOutError, InternalError: As the names say.
        """
        if len(request.module_key) != hashlib.sha256().digest_size:
            raise InvalidRequestError.of_field(
                "module_key", "has the wrong length; use module_key of a CompileResponse"
            )
        if request.kind not in KINDS:
            raise InvalidRequestError.of_field(
                "kind", f"{request.kind} is not known; GetServerInfo lists the artifact kinds"
            )
        module = await self._catalog.find(tenant, request.module_key)
        if not isinstance(module, CompiledModule):
            raise ModuleNotFoundInCacheError(
                "no compiled module has this key, or it was evicted; compile again"
            )
        if request.kind == pb.ARTIFACT_KIND_GRAPH:
            found = self._signed(await self._stored_graph(module), module, request.kind)
            leads = False
        elif request.kind == pb.ARTIFACT_KIND_CONSTANT:
            stored = await self._stored_constant(module, request.constant)
            found = self._signed(stored, module, request.kind)
            leads = False
        else:
            found, leads = await self._rendered(module, request)
        artifact = Artifact(
            kind=request.kind,
            data=found.record.data,
            digest=found.record.digest,
            media_type=found.record.media_type,
            rendered=leads,
            render_seconds=found.seconds if leads else 0.0,
            recompiles=module.report.recompiles,
            signature=found.record.signature,
        )
        self._observer.observe(
            ArtifactServed(
                kind=KINDS[request.kind],
                source="rendered" if leads else "cached",
                bytes=max(0, len(artifact.data) - request.offset),
                seconds=artifact.render_seconds,
            )
        )
        return artifact

    def progress(self, request: pb.GetArtifactRequest) -> pb.ArtifactProgress:
        """How far a native artifact is that `get` is waiting for."""
        variant = self._native.variant(request)
        return self._native.progress(artifact_digest(request.module_key, request.kind, variant))

    async def _rendered(
        self, module: CompiledModule, request: pb.GetArtifactRequest
    ) -> tuple[_Rendered, bool]:
        native = request.kind in NATIVE_KINDS
        names = self._native.variant(request) if native else _names(request.presentation)
        place = artifact_digest(module.key, request.kind, names)

        async def find_or_make(flight: Flight[_Rendered]) -> _Rendered:
            if record := await self._load(place, module, request.kind):
                return _Rendered(record)
            if native:
                return await self._make(module, request, place, flight)
            return await self._render(module, request, names, place, flight)

        rendered, leads = await self._flights.join(place, find_or_make)
        if leads and rendered.made:
            _log.debug(
                "rendered %s of module %s: seconds=%.3f tenant=%s",
                KINDS[request.kind],
                module.key.hex(),
                rendered.seconds,
                module.tenant.name or "-",
            )
        return rendered, leads and rendered.made

    def _on_abandoned(self, outcome: Outcome) -> None:
        self._observer.observe(FlightAbandoned("render", outcome))

    async def _make(
        self,
        module: CompiledModule,
        request: pb.GetArtifactRequest,
        place: bytes,
        flight: Flight[_Rendered],
    ) -> _Rendered:
        graph = graph_pb2.CompiledGraph.FromString((await self._stored_graph(module)).data)
        with self._quotas.charge_work(module.tenant):
            result = await self._native.make(
                place, graph, request, module.tenant.name, _subject(module), flight
            )
        flight.mark_finishing()
        record = _record(result.data, result.media_type)
        made = self._signed(record, module, request.kind, result.seconds)
        await self._keep(place, record)
        module.record_rendering(request.kind)
        return made

    async def _render(
        self,
        module: CompiledModule,
        request: pb.GetArtifactRequest,
        names: bytes,
        place: bytes,
        flight: Flight[_Rendered],
    ) -> _Rendered:
        graph = graph_pb2.CompiledGraph.FromString((await self._stored_graph(module)).data)
        source_place = artifact_digest(module.key, pb.ARTIFACT_KIND_SOURCE, names)
        job = worker.RenderJob(
            kind=request.kind,
            graph=graph,
            presentation=request.presentation,
            purpose=request.purpose or request.kind,
            max_source_bytes=self._max_source_bytes,
        )
        if request.kind in FROM_SOURCE:
            source = await self._load(source_place, module, pb.ARTIFACT_KIND_SOURCE)
            if source is not None:
                job.source.ParseFromString(source.data)
        if request.kind in WITH_CONSTANTS:
            for digest in module.record.constants:
                data = (await self._stored_constant(module, digest)).data
                job.constants.add(digest=digest, data=data)
        async with self._admission.slot(module.tenant.name):
            flight.mark_running()
            with self._quotas.charge_work(module.tenant):
                result = await self._jobs.render(job, module.tenant.name, _subject(module))
        flight.mark_finishing()
        record = _record(result.data, result.media_type)
        rendered = self._signed(record, module, request.kind, result.seconds)
        await self._keep(place, record)
        if request.kind in FROM_SOURCE and result.HasField("source"):
            source_bytes = result.source.SerializeToString(deterministic=True)
            source = _record(source_bytes, SOURCE_TYPE)
            self._signed(source, module, pb.ARTIFACT_KIND_SOURCE)
            await self._keep(source_place, source)
        await self._record_recompiles(module, result)
        module.record_rendering(request.kind)
        return rendered

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

    def _signed(
        self,
        record: worker.ArtifactRecord,
        module: CompiledModule,
        kind: pb.ArtifactKind.ValueType,
        seconds: float | None = None,
    ) -> _Rendered:
        record.signature.CopyFrom(self._signer.sign(record.digest, _facts(module, kind)))
        return _Rendered(record, seconds or 0.0, made=seconds is not None)

    async def _stored_graph(self, module: CompiledModule) -> worker.ArtifactRecord:
        content = module.record.compiled_graph
        data = await stored_content(self._store, module.graph_blob, content.sha256)
        if data is None:
            self._catalog.forget(module)
            raise ModuleNotFoundInCacheError("the compiled graph was evicted; compile again")
        return worker.ArtifactRecord(data=data, digest=content, media_type="application/x-protobuf")

    async def _stored_constant(
        self, module: CompiledModule, digest: graph_pb2.Digest
    ) -> worker.ArtifactRecord:
        if digest not in module.record.constants:
            raise InvalidRequestError.of_field(
                "constant", "is not one of CompileResponse.constants of this module"
            )
        place = module.tenant.blob(digest.sha256)
        data = await stored_content(self._store, place, digest.sha256)
        if data is None:
            self._catalog.forget(module)
            raise ModuleNotFoundInCacheError("a constant was evicted; compile again")
        return worker.ArtifactRecord(
            data=data, digest=digest, media_type="application/octet-stream"
        )

    async def _load(
        self, place: bytes, module: CompiledModule, kind: pb.ArtifactKind.ValueType
    ) -> worker.ArtifactRecord | None:
        """An artifact from the store, if this server's own signature is on it."""
        stored = await self._store.get(f"artifacts/{place.hex()}")
        if stored is None:
            return None
        try:
            record = worker.ArtifactRecord.FromString(stored)
        except DecodeError:
            return None
        facts = _facts(module, kind)
        signature = self._signer.renewed(record.signature, record.digest, facts)
        if signature is None:
            _log.warning(
                "an artifact in the store is not signed by this server; rendering it again"
            )
            return None
        record.signature.CopyFrom(signature)
        return record

    async def _keep(self, place: bytes, record: worker.ArtifactRecord) -> None:
        await self._store.put(f"artifacts/{place.hex()}", record.SerializeToString())


def _names(presentation: graph_pb2.Presentation) -> bytes:
    return hashlib.sha256(presentation.SerializeToString(deterministic=True)).digest()


def _facts(module: CompiledModule, kind: pb.ArtifactKind.ValueType) -> StatementFacts:
    return StatementFacts(module.key, kind, module.record.tenant, module.report.pipeline)


def _subject(module: CompiledModule) -> Subject:
    return Subject(module.tenant.tag, module.record.graph_digest)


def _record(data: bytes, media_type: str) -> worker.ArtifactRecord:
    if not media_type:
        raise InternalError("the worker rendered an artifact without a media type")
    digest = graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
    return worker.ArtifactRecord(data=data, digest=digest, media_type=media_type)
