"""The artifacts of one compiled module: each fetched once, checked, and remembered."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from lazyfx.answers.answer_bounds import AnswerBounds
from lazyfx.answers.downloads import OnProgress
from lazyfx.answers.refusals import Refusals
from lazyfx.capture.preparing import Prepared
from lazyfx.errors import LazyfxError, NotFoundError
from lazyfx.flows import Flow, Lock, Locked
from lazyfx.trust.verifying import Provenance, Verifier
from lazyfx.v1 import compiler_pb2 as pb

_MAX_RENEWALS = 3


class ArtifactClient(Protocol):
    """What a handle needs of its client.

    Attributes:
        bounds: How much is taken from the server.
        refusals: Counts what is refused.
        verifier: Checks signatures.
    """

    bounds: AnswerBounds
    refusals: Refusals
    verifier: Verifier

    def fetch(
        self,
        request: pb.GetArtifactRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Flow[tuple[bytes, pb.ArtifactTrailer]]:
        """Fetch an artifact whole, and check who made it."""

    def recompile(self, prepared: Prepared) -> Flow[pb.CompileResponse]:
        """Compile again a module that has left the server's cache."""


class ArtifactFetcher:
    """Fetches the artifacts of one module.

    Attributes:
        report: What the compile did, with the recompiles that later touches caused.
        constants: Bytes of the constants that passes made, by SHA-256; see
            `graph_and_constants`.
    """

    def __init__(
        self, fetcher: ArtifactClient, prepared: Prepared, response: pb.CompileResponse, lock: Lock
    ) -> None:
        self._fetcher = fetcher
        self._prepared = prepared
        self._response = response
        self.report = response.report
        self.constants: dict[bytes, bytes] = {}
        self._fetched: dict[int, bytes] = {}
        self._trailers: dict[int, pb.ArtifactTrailer] = {}
        self._lock = lock

    @property
    def response(self) -> pb.CompileResponse:
        """What the server answered last: another one after it had lost the module."""
        return self._response

    def get(
        self,
        kind: pb.ArtifactKind.ValueType,
        purpose: pb.ArtifactKind.ValueType = pb.ARTIFACT_KIND_UNSPECIFIED,
    ) -> Flow[bytes]:
        """An artifact of this module, fetched once."""
        data: bytes = yield Locked(self._lock, self._get(kind, purpose))
        return data

    def _get(
        self, kind: pb.ArtifactKind.ValueType, purpose: pb.ArtifactKind.ValueType
    ) -> Flow[bytes]:
        if kind not in self._fetched:
            request = pb.GetArtifactRequest(kind=kind, purpose=purpose)
            if kind != pb.ARTIFACT_KIND_GRAPH:
                request.presentation.CopyFrom(self._prepared.encoded.presentation)
            data = yield from self.fetch(request)
            self._fetched[kind] = data
        return self._fetched[kind]

    def graph_and_constants(self) -> Flow[bytes]:
        """Graph data of this module, with the constants that passes made in `constants`.

        Raises:
            ServiceError: The server cannot send them, or loses the module again and again.
        """
        for _ in range(_MAX_RENEWALS):
            data = yield from self.get(pb.ARTIFACT_KIND_GRAPH)
            # Compiled again meanwhile, it may have other constants.
            if (yield Locked(self._lock, self._fetch_constants())):
                return data
        raise NotFoundError("the server repeatedly evicted the module", code="NOT_FOUND")

    def _fetch_constants(self) -> Flow[bool]:
        """Fetch the constants; False if the module was compiled under another key meanwhile."""
        response = self._response
        for digest in response.constants:
            if digest.sha256 not in self.constants:
                request = pb.GetArtifactRequest(kind=pb.ARTIFACT_KIND_CONSTANT, constant=digest)
                self.constants[digest.sha256] = yield from self.fetch(request)
        return response.module_key == self._response.module_key

    def fetch(
        self,
        request: pb.GetArtifactRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Flow[bytes]:
        """Fetch what a request names, whose module key is filled in here.

        A module that the server has lost is compiled again, once, from the graph as it was encoded
        and with the values that it was compiled with.

        Raises:
            UntrustedArtifactError: It is not signed with a trusted key.
            ServiceError: The server cannot build it.
            LazyfxError: The module is lost, and values that passes read have changed since.
        """
        fetch = partial(self._fetcher.fetch, timeout=timeout, on_progress=on_progress)
        asked = request.module_key = self._response.module_key
        try:
            data, trailer = yield from fetch(request)
        except NotFoundError:
            if self._response.module_key == asked:
                self._adopt_recompiled((yield from self._fetcher.recompile(self._prepared)))
            request.module_key = self._response.module_key
            data, trailer = yield from fetch(request)
        self._trailers[request.kind] = trailer
        recompiles = self.report.recompiles
        if trailer.recompiles.performed > recompiles.performed:
            report = pb.CompileReport()
            report.CopyFrom(self.report)
            report.recompiles.CopyFrom(trailer.recompiles)
            report.stale = False
            self.report = report
        return data

    def _adopt_recompiled(self, response: pb.CompileResponse) -> None:
        """Go on with what was compiled again: under the same key, or under a new one.

        The key is another one where the server's secret was made again or its versions changed;
        what was fetched under the old one is not mixed with what comes now.
        """
        if response.module_key != self._response.module_key:
            self._fetched.clear()
            self._trailers.clear()
            self.report = response.report
        self._response = response

    def verify_provenance(self, kind: pb.ArtifactKind.ValueType) -> Flow[Provenance]:
        """Where an artifact that was fetched comes from, as signed.

        Raises:
            LazyfxError: It has not been fetched.
        """
        if kind not in self._trailers:
            raise LazyfxError("this artifact has not been fetched yet")
        request = pb.GetArtifactRequest(module_key=self._response.module_key, kind=kind)
        return (yield from self._fetcher.verifier.verify_provenance(request, self._trailers[kind]))
