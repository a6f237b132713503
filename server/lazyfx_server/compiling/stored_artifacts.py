"""Artifacts in the store: outputs of compiles and rendered ones, each with a signature."""

from __future__ import annotations

import asyncio
import hashlib
import logging

from google.protobuf.message import DecodeError

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.blobs.content_checks import stored_content
from lazyfx_server.compiling.catalog import Catalog, CompiledModule
from lazyfx_server.compiling.kernels.kept_kernels import without_kept
from lazyfx_server.errors import InternalError, InvalidRequestError, ModuleNotFoundInCacheError
from lazyfx_server.jobs.artifact_kinds import ARTIFACT_KINDS
from lazyfx_server.security.signing import Signer, StatementFacts
from lazyfx_server.store import Store
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)


def artifact_key(place: bytes) -> str:
    """The store key of an artifact; see `key.artifact_digest`."""
    return f"artifacts/{place.hex()}"


class StoredArtifacts:
    """Finds and stores the artifacts of compiled modules.

    Args:
        store: Artifacts, compiled graphs and constants.
        catalog: Notified of modules whose blobs are missing.
        signer: Signs artifacts.
    """

    def __init__(self, store: Store, catalog: Catalog, signer: Signer) -> None:
        self._store = store
        self._catalog = catalog
        self._signer = signer

    async def find(
        self, place: bytes, module: CompiledModule, kind: pb.ArtifactKind.ValueType
    ) -> worker.ArtifactRecord | None:
        """The artifact under a store key, if this server signed it."""
        stored = await self._store.get(artifact_key(place))
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

    async def has(self, store_key: str) -> bool:
        """Whether there is an artifact under a store key; counts as a use of it."""
        return store_key in await self._store.contains([store_key])

    async def add(
        self,
        place: bytes,
        data: bytes,
        media_type: str,
        module: CompiledModule,
        kind: pb.ArtifactKind.ValueType,
        upstream: pb.ArtifactSignature | None = None,
    ) -> worker.ArtifactRecord:
        """Sign a worker's result and store it under a key.

        Args:
            place: The key.
            data: The artifact.
            media_type: Its media type.
            module: Its module.
            kind: Its kind.
            upstream: The signature of the upstream, if that made it.

        Raises:
            InternalError: The worker returned no media type.
        """
        if not media_type:
            raise InternalError("the worker rendered an artifact without a media type")
        digest = graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
        record = self._signed(data, digest, media_type, module, kind)
        if upstream is not None:
            record.upstream.CopyFrom(upstream)
        await self._store.put(artifact_key(place), record.SerializeToString())
        return record

    async def made_by_compile(
        self, module: CompiledModule, request: pb.GetArtifactRequest
    ) -> worker.ArtifactRecord:
        """An artifact that the compile itself created, signed.

        Raises:
            InvalidRequestError: The module has no such constant.
            ModuleNotFoundInCacheError: It was evicted.
        """
        if request.kind == pb.ARTIFACT_KIND_CONSTANT:
            digest, data = request.constant, await self.constant(module, request.constant)
        else:
            digest, data = module.record.compiled_graph, await self.graph(module)
        media_type = ARTIFACT_KINDS[request.kind].media_type
        record = self._signed(data, digest, media_type, module, request.kind)
        if module.record.HasField("upstream"):
            record.upstream.CopyFrom(_upstream_signature(module, request))
        return record

    async def without_kernels(
        self,
        record: worker.ArtifactRecord,
        module: CompiledModule,
        kind: pb.ArtifactKind.ValueType,
        kept: bytes | None,
    ) -> worker.ArtifactRecord:
        """An artifact for a caller who has some of its kernels, or all, signed as it is sent."""
        data = await asyncio.to_thread(without_kept, record.data, kept)
        digest = graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
        signature = self._signer.sign(digest, _facts(module, kind), passing=True)
        return worker.ArtifactRecord(
            data=data, digest=digest, media_type=record.media_type, signature=signature
        )

    async def graph(self, module: CompiledModule) -> bytes:
        """The serialized CompiledGraph of a module.

        Raises:
            ModuleNotFoundInCacheError: It was evicted.
        """
        content = module.record.compiled_graph
        data = await stored_content(self._store, module.graph_blob, content.sha256)
        if data is None:
            self._catalog.forget(module)
            raise ModuleNotFoundInCacheError("the compiled graph was evicted; compile again")
        return data

    async def constant(self, module: CompiledModule, digest: graph_pb2.Digest) -> bytes:
        """A constant that passes made.

        Raises:
            InvalidRequestError: The module has no such constant.
            ModuleNotFoundInCacheError: It was evicted.
        """
        if digest not in module.record.constants:
            raise InvalidRequestError.of_field(
                "constant", "is not one of CompileResponse.constants of this module"
            )
        place = module.tenant.blob(digest.sha256)
        data = await stored_content(self._store, place, digest.sha256)
        if data is None:
            self._catalog.forget(module)
            raise ModuleNotFoundInCacheError("a constant was evicted; compile again")
        return data

    def _signed(
        self,
        data: bytes,
        digest: graph_pb2.Digest,
        media_type: str,
        module: CompiledModule,
        kind: pb.ArtifactKind.ValueType,
    ) -> worker.ArtifactRecord:
        signature = self._signer.sign(digest, _facts(module, kind))
        return worker.ArtifactRecord(
            data=data, digest=digest, media_type=media_type, signature=signature
        )


def _upstream_signature(
    module: CompiledModule, request: pb.GetArtifactRequest
) -> pb.ArtifactSignature:
    """What the upstream signed about a graph or constant that it compiled."""
    origin = module.record.upstream
    if request.kind == pb.ARTIFACT_KIND_GRAPH:
        return origin.graph
    return origin.constants[list(module.record.constants).index(request.constant)]


def _facts(module: CompiledModule, kind: pb.ArtifactKind.ValueType) -> StatementFacts:
    return StatementFacts(module.key, kind, module.record.tenant, module.report.pipeline)
