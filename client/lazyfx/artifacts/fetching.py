"""The artifacts of one compiled module: each is fetched once, checked, and cached."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from lazyfx.answers.refusals import Refusals
from lazyfx.capture.preparing import Prepared
from lazyfx.errors import LazyfxError, NotFoundError
from lazyfx.flows import Flow, Lock, Locked
from lazyfx.shared.answers.answer_bounds import AnswerBounds
from lazyfx.shared.answers.downloads import OnProgress
from lazyfx.trust.verifying import Provenance, Verifier
from lazyfx.v1 import compiler_pb2 as pb

_MAX_RENEWALS = 3


class ArtifactClient(Protocol):
    """What a handle needs from its client.

    Attributes:
        bounds: Bounds on answers of the server.
        refusals: Counts refused answers.
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
        """Fetch a complete artifact and check its signature."""

    def recompile(self, prepared: Prepared) -> Flow[pb.CompileResponse]:
        """Recompile a module that the server evicted."""


class ArtifactFetcher:
    """Fetches the artifacts of one module.

    Attributes:
        report: What the compile did, including recompiles that later fetches caused.
        constants: Bytes of the constants that passes created, by SHA-256; see
            `graph_and_constants`.
    """

    def __init__(
        self, client: ArtifactClient, prepared: Prepared, response: pb.CompileResponse, lock: Lock
    ) -> None:
        self._client = client
        self._prepared = prepared
        self._response = response
        self.report = response.report
        self.constants: dict[bytes, bytes] = {}
        self._fetched: dict[int, bytes] = {}
        self._trailers: dict[int, pb.ArtifactTrailer] = {}
        self._lock = lock

    @property
    def response(self) -> pb.CompileResponse:
        """The server's latest response: a new one after a recompile."""
        return self._response

    def get(self, kind: pb.ArtifactKind.ValueType) -> Flow[bytes]:
        """An artifact of this module, fetched once."""
        data: bytes = yield Locked(self._lock, self._get(kind))
        return data

    def _get(self, kind: pb.ArtifactKind.ValueType) -> Flow[bytes]:
        if kind not in self._fetched:
            request = pb.GetArtifactRequest(kind=kind)
            if kind != pb.ARTIFACT_KIND_GRAPH:
                request.presentation.CopyFrom(self._prepared.encoded.presentation)
            data = yield from self.fetch(request)
            self._fetched[kind] = data
        return self._fetched[kind]

    def graph_and_constants(self) -> Flow[bytes]:
        """Graph data of this module; also fetches the passes' constants, into `constants`.

        Raises:
            ServiceError: The server cannot send them, or repeatedly evicts the module.
        """
        for _ in range(_MAX_RENEWALS):
            data = yield from self.get(pb.ARTIFACT_KIND_GRAPH)
            # If it was recompiled meanwhile, it may have other constants.
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
        """Fetch an artifact; the module key of the request is filled in here.

        If the server has evicted the module, it is recompiled once, from the same encoded graph and
        with the same values.

        Raises:
            UntrustedArtifactError: It is not signed with a trusted key.
            ServiceError: The server cannot build it.
            LazyfxError: The module was evicted, and values that passes read have changed since.
        """
        fetch = partial(self._client.fetch, timeout=timeout, on_progress=on_progress)
        asked = request.module_key = self._response.module_key
        request.priority = self._prepared.requests.whole.priority
        try:
            data, trailer = yield from fetch(request)
        except NotFoundError:
            if self._response.module_key == asked:
                self._adopt_recompiled((yield from self._client.recompile(self._prepared)))
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
        """Adopt a recompiled module, under the same key or a new one.

        The key differs if the server's secret or versions changed; artifacts fetched under the old
        key are dropped.
        """
        if response.module_key != self._response.module_key:
            self._fetched.clear()
            self._trailers.clear()
            self.report = response.report
        self._response = response

    def verify_provenance(self, kind: pb.ArtifactKind.ValueType) -> Flow[Provenance]:
        """The signed provenance of a fetched artifact.

        Raises:
            LazyfxError: It has not been fetched.
        """
        if kind not in self._trailers:
            raise LazyfxError("this artifact has not been fetched yet")
        request = pb.GetArtifactRequest(module_key=self._response.module_key, kind=kind)
        return (yield from self._client.verifier.verify_provenance(request, self._trailers[kind]))
