"""Artifacts that the upstream makes for this server's callers, and the signatures that they get."""

from __future__ import annotations

from functools import partial
from typing import Any

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.catalog import Catalog, CompiledModule
from lazyfx_server.compiling.flights.single_flight import Flight
from lazyfx_server.compiling.forwarding.answers import of_what_is_needed
from lazyfx_server.compiling.forwarding.forwarding import Forwarding
from lazyfx_server.compiling.forwarding.upstream_calls import NOT_IN_USE
from lazyfx_server.compiling.forwarding.upstream_keys import has_expired
from lazyfx_server.compiling.native_artifacts import NativeCompiles
from lazyfx_server.compiling.stored_artifacts import StoredArtifacts
from lazyfx_server.errors import ModuleNotFoundInCacheError
from lazyfx_server.jobs.artifact_kinds import ARTIFACT_KINDS
from lazyfx_server.v1 import worker_pb2 as worker


class ForwardedArtifacts:
    """Asks the upstream for artifacts, and stores them here.

    Args:
        forwarding: Asks it.
        catalog: Compiled modules by key.
        stored: Artifacts in the store.
        native: What this server can build itself.
    """

    def __init__(
        self,
        forwarding: Forwarding,
        catalog: Catalog,
        stored: StoredArtifacts,
        native: NativeCompiles,
    ) -> None:
        self._forwarding = forwarding
        self._catalog = catalog
        self._stored = stored
        self._native = native
        # Of native artifacts that the upstream compiles, by place.
        self._progress: dict[bytes, pb.ArtifactProgress] = {}

    def progress(self, place: bytes) -> pb.ArtifactProgress | None:
        """The progress of a native compile at the upstream; None if there is none."""
        return self._progress.get(place)

    def signature(
        self, record: worker.ArtifactRecord, module: CompiledModule, kind: int
    ) -> pb.ArtifactSignature:
        """The signature of the upstream while it is valid, for callers who know only its key."""
        if record.HasField("upstream"):
            keys, digest = self._forwarding.keys, record.digest.sha256
            if keys.is_current(record.upstream, digest, module.key, kind):
                return record.upstream
        return record.signature

    def is_outdated(self, record: worker.ArtifactRecord) -> bool:
        """Whether what the upstream signed of an artifact has expired, and it can sign it again."""
        if not self._forwarding.in_use or not record.HasField("upstream"):
            return False
        return has_expired(record.upstream)

    async def make(
        self,
        request: pb.GetArtifactRequest,
        module: CompiledModule,
        place: bytes,
        flight: Flight[Any],
    ) -> worker.ArtifactRecord | None:
        """The artifact as the upstream has or makes it; None to make it here.

        Args:
            request: Names the artifact.
            module: Its module.
            place: Its key in the store.
            flight: Notified when the upstream is asked.

        Raises:
            ModuleNotFoundInCacheError: The upstream does not have the module, but will if it
                compiles it again, and this server cannot build the artifact.
            UnavailableError: The upstream cannot serve it now, and this server cannot build it.
            FailedPreconditionError: The upstream cannot serve it, and this server cannot build it.
            RequestError: The upstream refuses the caller.
        """
        kind = ARTIFACT_KINDS[request.kind]
        is_needed = kind.maker == "native" and not self._native.targets
        if not self._forwarding.in_use:
            if is_needed:
                raise of_what_is_needed(NOT_IN_USE)
            return None
        flight.mark_running()
        found = None
        if module.record.HasField("upstream"):
            try:
                found = await self._forwarding.artifact(
                    request,
                    module.report.pipeline,
                    partial(self._progress.__setitem__, place),
                    is_needed=is_needed,
                )
            finally:
                self._progress.pop(place, None)
        if found is None:
            if is_needed:
                await self._catalog.remove(module)
                raise ModuleNotFoundInCacheError(
                    "the upstream did not serve the artifact, and this server cannot build it; "
                    "compile again"
                )
            return None
        data, signature = found
        flight.mark_finishing()
        record = await self._stored.add(
            place, data, kind.media_type, module, request.kind, signature
        )
        module.record_rendering(request.kind)
        return record
