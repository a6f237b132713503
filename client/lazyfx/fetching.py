"""The artifacts of one compiled module: each fetched once, checked, and remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeAlias

from lazyfx.answers.bounds import AnswerBounds
from lazyfx.answers.refusals import Refusals
from lazyfx.errors import LazyfxError, NotFoundError
from lazyfx.preparing import Prepared
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.verifying import Provenance

OnProgress: TypeAlias = "Callable[[pb.ArtifactProgress], None]"


class Fetcher(Protocol):
    """What a handle needs of its client.

    Attributes:
        bounds: How much is taken from the server.
        refusals: Counts what is refused.
    """

    bounds: AnswerBounds
    refusals: Refusals

    async def fetch(
        self,
        request: pb.GetArtifactRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> tuple[bytes, pb.ArtifactTrailer]:
        """Fetch an artifact whole, and check who made it."""

    async def vouch(
        self, request: pb.GetArtifactRequest, trailer: pb.ArtifactTrailer
    ) -> Provenance:
        """Where an artifact comes from, as signed."""

    async def recompile(self, prepared: Prepared) -> pb.CompileResponse:
        """Compile again a module that has left the server's cache."""


class Artifacts:
    """Fetches the artifacts of one module.

    Attributes:
        report: What the compile did, with the recompiles that later touches caused.
        constants: Bytes of the constants that passes made, by SHA-256; see `fetch_constants`.
    """

    def __init__(self, fetcher: Fetcher, prepared: Prepared, response: pb.CompileResponse) -> None:
        self._fetcher = fetcher
        self._prepared = prepared
        self._response = response
        self.report = response.report
        self.constants: dict[bytes, bytes] = {}
        self._fetched: dict[int, bytes] = {}
        self._trailers: dict[int, pb.ArtifactTrailer] = {}
        self._lock = asyncio.Lock()

    async def get(
        self,
        kind: pb.ArtifactKind.ValueType,
        purpose: pb.ArtifactKind.ValueType = pb.ARTIFACT_KIND_UNSPECIFIED,
    ) -> bytes:
        """An artifact of this module, fetched once."""
        async with self._lock:
            if kind not in self._fetched:
                request = pb.GetArtifactRequest(kind=kind, purpose=purpose)
                if kind != pb.ARTIFACT_KIND_GRAPH:
                    request.presentation.CopyFrom(self._prepared.encoded.presentation)
                self._fetched[kind] = await self.fetch(request)
            return self._fetched[kind]

    async def fetch_constants(self) -> None:
        """Fetch the constants that passes made."""
        async with self._lock:
            for digest in self._response.constants:
                if digest.sha256 not in self.constants:
                    request = pb.GetArtifactRequest(kind=pb.ARTIFACT_KIND_CONSTANT, constant=digest)
                    self.constants[digest.sha256] = await self.fetch(request)

    async def fetch(
        self,
        request: pb.GetArtifactRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> bytes:
        """Fetch what a request names, whose module key is filled in here.

        Raises:
            UntrustedArtifactError: Nobody who is trusted has signed it.
            ServiceError: The server cannot make it.
        """
        request.module_key = self._response.module_key
        fetch = partial(self._fetcher.fetch, timeout=timeout, on_progress=on_progress)
        try:
            data, trailer = await fetch(request)
        except NotFoundError:
            # It has been evicted since; making it again gives the same module.
            again = await self._fetcher.recompile(self._prepared)
            if again.module_key != self._response.module_key:
                raise
            data, trailer = await fetch(request)
        self._trailers[request.kind] = trailer
        recompiles = self.report.recompiles
        if trailer.recompiles.performed > recompiles.performed:
            report = pb.CompileReport()
            report.CopyFrom(self.report)
            report.recompiles.CopyFrom(trailer.recompiles)
            report.stale = False
            self.report = report
        return data

    async def vouch(self, kind: pb.ArtifactKind.ValueType) -> Provenance:
        """Where an artifact that was fetched comes from, as signed.

        Raises:
            LazyfxError: It has not been fetched.
        """
        if kind not in self._trailers:
            raise LazyfxError("this artifact has not been fetched; nothing is known of it")
        request = pb.GetArtifactRequest(module_key=self._response.module_key, kind=kind)
        return await self._fetcher.vouch(request, self._trailers[kind])
