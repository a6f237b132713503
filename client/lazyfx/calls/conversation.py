"""Compile requests: by token, by digest, with the graph or with values, as the server needs."""

from __future__ import annotations

from lazyfx.calls.service_calls import CompileCall, ServiceCalls
from lazyfx.calls.uploading import Progress
from lazyfx.capture.preparing import INLINE_BYTES, Prepared, Preparer
from lazyfx.errors import MissingBlobsError
from lazyfx.flows import Flow, Pause
from lazyfx.shared.missing import BLOB_SUBJECT, VALUE_SUBJECT
from lazyfx.v1 import compiler_pb2 as pb

# By token, by digest, with the graph, with values, and one spare: a server that still lacks
# something then misbehaves.
_MAX_TRIES = 5


class CompileCaller:
    """Sends compile requests to one server, and remembers which graphs it has.

    Args:
        calls: The calls of that server.
        preparer: Supplies what the server says it lacks.
        on_upload: Called with the bytes sent and the total bytes while tensors are uploaded.
    """

    def __init__(
        self, calls: ServiceCalls, preparer: Preparer, on_upload: Progress | None = None
    ) -> None:
        self._calls = calls
        self._preparer = preparer
        self._on_upload = on_upload
        # Digests of graphs that the server is known to have, which need not be sent.
        self._sent: set[bytes] = set()

    def forget(self, prepared: Prepared) -> None:
        """Forget that the server has this graph."""
        self._sent.discard(prepared.encoded.digest)

    def first_request(self, prepared: Prepared) -> pb.CompileRequest:
        """The first request: by token if there is one; with the graph if the server may lack it."""
        encoded, requests = prepared.encoded, prepared.requests
        if encoded.digest in self._sent:
            return requests.short or requests.whole
        if len(encoded.body) > INLINE_BYTES:
            return requests.whole
        subjects = [f"{BLOB_SUBJECT}{encoded.digest.hex()}"]
        return self._preparer.provide_missing(prepared, requests.whole, subjects)[0]

    def compile_if_unchanged(
        self, prepared: Prepared, timeout: float | None = None
    ) -> Flow[pb.CompileResponse | None]:
        """Send the cached digest, and check during the call whether the graph still has it.

        Args:
            prepared: The request, with `is_unchanged`.
            timeout: Seconds that each call may take.

        Returns:
            The answer, or None when the graph has changed since it was encoded.

        Raises:
            ServiceError: A subclass, by the status that the server returned.
        """
        request = self.first_request(prepared)
        call = yield from self._calls.start_compile(request, timeout)
        try:
            yield Pause(0)
            if prepared.is_unchanged is not None and not prepared.is_unchanged():
                return None
            return (yield from self._finish(prepared, timeout, request, call))
        finally:
            call.first.cancel()

    def ask(
        self, prepared: Prepared, timeout: float | None = None, *, skip_cache_lookup: bool = False
    ) -> Flow[pb.CompileResponse]:
        """Send a prepared request, and then whatever the server lacks.

        Args:
            prepared: The request.
            timeout: Seconds that each call may take.
            skip_cache_lookup: Compile even if the server has a result.

        Raises:
            ServiceError: A subclass, by the status that the server returned.
            ValuesRefusedError: The server requests values that no pass of the request reads.
            ProtocolError: It requests what the graph does not have, or its answer is malformed.
        """
        if skip_cache_lookup:
            request = pb.CompileRequest()
            request.CopyFrom(prepared.requests.whole)
            request.skip_cache_lookup = True
        else:
            request = self.first_request(prepared)
        call = yield from self._calls.start_compile(request, timeout)
        return (yield from self._finish(prepared, timeout, request, call))

    def _finish(
        self,
        prepared: Prepared,
        timeout: float | None,
        request: pb.CompileRequest,
        call: CompileCall,
    ) -> Flow[pb.CompileResponse]:
        """Finish a call, and make others with what the server lacks."""
        requests = prepared.requests
        tries_left = _MAX_TRIES
        while True:
            try:
                response = yield from self._calls.finish_compile(call)
            except MissingBlobsError as missing:
                tries_left -= 1
                if not tries_left:
                    raise
                if request.request_token:
                    requests.short, request = None, requests.whole
                else:
                    request = yield from self._with_missing(prepared, request, missing)
                call = yield from self._calls.start_compile(request, timeout)
            else:
                self._sent.add(prepared.encoded.digest)
                if response.request_token and request is requests.whole:
                    requests.short = pb.CompileRequest(request_token=response.request_token)
                return response

    def _with_missing(
        self, prepared: Prepared, request: pb.CompileRequest, missing: MissingBlobsError
    ) -> Flow[pb.CompileRequest]:
        """The request with what was missing; uploads the blobs that it names."""
        request, blobs = self._preparer.provide_missing(prepared, request, missing.subjects)
        values = [subject for subject in missing.subjects if subject.startswith(VALUE_SUBJECT)]
        if values:
            # The next request includes the values at once, which saves a round trip.
            prepared.requests.reads = tuple(values)
        if blobs:
            yield from self._calls.upload(blobs, self._on_upload)
        return request
