"""Artifacts in the store: what compiles made, and what was rendered, each under a signature."""

from __future__ import annotations

import hashlib
import logging

from google.protobuf.message import DecodeError

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.blobs.content_checks import stored_content
from lazyfx_server.compiling.catalog import Catalog, CompiledModule
from lazyfx_server.errors import InternalError, InvalidRequestError, ModuleNotFoundInCacheError
from lazyfx_server.jobs.artifact_kinds import ARTIFACT_KINDS
from lazyfx_server.security.signing import Signer, StatementFacts
from lazyfx_server.store import Store
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)


class StoredArtifacts:
    """Finds and keeps the artifacts of compiled modules.

    Args:
        store: Artifacts, compiled graphs and constants.
        catalog: Told of modules whose blobs are gone.
        signer: States what each artifact is.
    """

    def __init__(self, store: Store, catalog: Catalog, signer: Signer) -> None:
        self._store = store
        self._catalog = catalog
        self._signer = signer

    async def find(
        self, place: bytes, module: CompiledModule, kind: pb.ArtifactKind.ValueType
    ) -> worker.ArtifactRecord | None:
        """The artifact at a place, if this server's own signature is on it."""
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

    async def add(
        self,
        place: bytes,
        data: bytes,
        media_type: str,
        module: CompiledModule,
        kind: pb.ArtifactKind.ValueType,
    ) -> worker.ArtifactRecord:
        """Sign what a worker made and store it at a place.

        Raises:
            InternalError: The worker did not say what it is.
        """
        if not media_type:
            raise InternalError("the worker rendered an artifact without a media type")
        digest = graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
        record = worker.ArtifactRecord(data=data, digest=digest, media_type=media_type)
        self._sign(record, module, kind)
        await self._store.put(f"artifacts/{place.hex()}", record.SerializeToString())
        return record

    async def made_by_compile(
        self, module: CompiledModule, request: pb.GetArtifactRequest
    ) -> worker.ArtifactRecord:
        """What the compile of a module made and a request names, signed.

        Raises:
            InvalidRequestError: The module has no such constant.
            ModuleNotFoundInCacheError: It was evicted.
        """
        if request.kind == pb.ARTIFACT_KIND_CONSTANT:
            record = await self.constant(module, request.constant)
        else:
            record = await self.graph(module)
        self._sign(record, module, request.kind)
        return record

    async def graph(self, module: CompiledModule) -> worker.ArtifactRecord:
        """The compiled graph of a module, without a signature.

        Raises:
            ModuleNotFoundInCacheError: It was evicted.
        """
        content = module.record.compiled_graph
        data = await stored_content(self._store, module.graph_blob, content.sha256)
        if data is None:
            self._catalog.forget(module)
            raise ModuleNotFoundInCacheError("the compiled graph was evicted; compile again")
        media_type = ARTIFACT_KINDS[pb.ARTIFACT_KIND_GRAPH].media_type
        return worker.ArtifactRecord(data=data, digest=content, media_type=media_type)

    async def constant(
        self, module: CompiledModule, digest: graph_pb2.Digest
    ) -> worker.ArtifactRecord:
        """A constant that passes made, without a signature.

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
        media_type = ARTIFACT_KINDS[pb.ARTIFACT_KIND_CONSTANT].media_type
        return worker.ArtifactRecord(data=data, digest=digest, media_type=media_type)

    def _sign(
        self,
        record: worker.ArtifactRecord,
        module: CompiledModule,
        kind: pb.ArtifactKind.ValueType,
    ) -> None:
        record.signature.CopyFrom(self._signer.sign(record.digest, _facts(module, kind)))


def _facts(module: CompiledModule, kind: pb.ArtifactKind.ValueType) -> StatementFacts:
    return StatementFacts(module.key, kind, module.record.tenant, module.report.pipeline)
