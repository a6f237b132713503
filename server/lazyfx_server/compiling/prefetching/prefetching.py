"""Finds what a job asked for when it last ran; makes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from lazyfx.shared.native.prefetch_keys import prefetch_key
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.artifact_making import ResolvedArtifact
from lazyfx_server.compiling.artifacts import Artifact, Artifacts
from lazyfx_server.compiling.compile import Compiler
from lazyfx_server.compiling.prefetching.job_memory import JobMemory
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import RequestError

# How many are looked up at a time: each asks the store a few times.
_LOOKUPS: Final = 16
# How long in all: the client waits for the plan, half a second when it has a graph.
_PLAN_SECONDS: Final = 0.4


@dataclass(frozen=True, slots=True)
class KnownArtifact:
    """An artifact that a job asked for, and that is probably in the store.

    Attributes:
        key: By which the client recognizes it.
        resolved: The request for it.
    """

    key: bytes
    resolved: ResolvedArtifact


class Prefetching:
    """Finds the native artifacts that a job asked for when it last ran.

    Args:
        memory: What jobs asked for.
        compiler: Finds compiled modules.
        artifacts: Finds their artifacts.
    """

    def __init__(self, memory: JobMemory, compiler: Compiler, artifacts: Artifacts) -> None:
        self.memory = memory
        self._compiler = compiler
        self._artifacts = artifacts

    async def plan(self, request: pb.PrefetchRequest, tenant: Tenant) -> Sequence[KnownArtifact]:
        """The artifacts of a job, in the order in which it asked for them, without their bytes.

        What is not cached, what this server would now refuse, and what a slow store has not found
        in time is left out.

        Raises:
            InvalidRequestError: A field of the request is wrong.
        """
        remembered = await self.memory.recall(request.jobs, tenant)
        if remembered is None:
            return ()
        wanted = {}
        for artifact in remembered.artifacts:
            native = remembered.natives[artifact.native]
            wanted[prefetch_key(artifact.compile, native)] = artifact.compile, native
        turn = asyncio.Semaphore(_LOOKUPS)
        lookups = [asyncio.ensure_future(self._find(*one, tenant, turn)) for one in wanted.values()]
        found = zip(wanted, await _in_time(lookups), strict=True)
        return tuple(KnownArtifact(key, made) for key, made in found if made is not None)

    async def _find(
        self,
        asked: pb.CompileRequest,
        native: pb.NativeRequest,
        tenant: Tenant,
        turn: asyncio.Semaphore,
    ) -> ResolvedArtifact | None:
        try:
            async with turn:
                module = await self._compiler.find(asked, tenant)
                if module is None:
                    return None
                wanted = pb.GetArtifactRequest(
                    module_key=module.key, kind=pb.ARTIFACT_KIND_INDUCTOR, native=native
                )
                return await self._artifacts.find(wanted, module)
        except RequestError:  # it was allowed when it was remembered
            return None

    async def read(
        self, planned: Sequence[KnownArtifact], *, max_bytes: int, without_libraries: bool
    ) -> AsyncIterator[tuple[KnownArtifact, Artifact]]:
        """Read planned artifacts, one at a time, until they would exceed a number of bytes.

        Args:
            planned: From `plan`.
            max_bytes: Bytes of all of them; larger ones are left out.
            without_libraries: Name libraries by their digests.
        """
        left = max_bytes
        for known in planned:
            artifact = await self._artifacts.read(
                known.resolved, max_bytes=left, without_libraries=without_libraries
            )
            if artifact is not None:
                left -= len(artifact.data)
                yield known, artifact


async def _in_time(
    lookups: Sequence[asyncio.Future[ResolvedArtifact | None]],
) -> Sequence[ResolvedArtifact | None]:
    """The results of lookups; None for those that are not done in time, which are cancelled."""
    try:
        if lookups:
            await asyncio.wait(lookups, timeout=_PLAN_SECONDS)
        return [each.result() if each.done() else None for each in lookups]
    finally:
        for each in lookups:
            each.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)
