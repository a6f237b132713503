"""Compile requests: by token, by digest, with the graph or with values, as the server needs."""

from __future__ import annotations

from functools import partial

from lazyfx.calls.replicas import Route
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
    """Sends compile requests, and remembers which graphs each server has.

    All calls for one compile go to one replica, which may be the only one that received what was
    uploaded. If it fails, another one is asked from the start.

    Args:
        calls: The calls to the server, or its replicas.
        preparer: Supplies what the server says it lacks.
        on_upload: Called with the bytes sent and the total bytes while tensors are uploaded.
    """

    def __init__(
        self, calls: ServiceCalls, preparer: Preparer, on_upload: Progress | None = None
    ) -> None:
        self._calls = calls
        self._preparer = preparer
        self._on_upload = on_upload
        # Replicas, and digests of graphs that each is known to have, which need not be sent.
        self._sent: set[tuple[int, bytes]] = set()

    def forget(self, prepared: Prepared) -> None:
        """Forget which servers have this graph."""
        for replica in range(len(self._calls.replicas.addresses)):
            self._sent.discard((replica, prepared.encoded.digest))

    def first_request(self, prepared: Prepared, replica: int = 0) -> pb.CompileRequest:
        """The first request: by token if there is one; with the graph if the server may lack it."""
        encoded, requests = prepared.encoded, prepared.requests
        if (replica, encoded.digest) in self._sent:
            return requests.short.get(replica) or requests.whole
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
        route = self._route(prepared)
        request = self.first_request(prepared, route.place.replica)
        second = partial(self.first_request, prepared)
        call = yield from self._calls.start_compile(request, route, timeout, second)
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
        route = self._route(prepared)
        if skip_cache_lookup:
            request = pb.CompileRequest()
            request.CopyFrom(prepared.requests.whole)
            request.skip_cache_lookup = True
        else:
            request = self.first_request(prepared, route.place.replica)
        second = None if skip_cache_lookup else partial(self.first_request, prepared)
        call = yield from self._calls.start_compile(request, route, timeout, second)
        return (yield from self._finish(prepared, timeout, request, call))

    def _finish(
        self,
        prepared: Prepared,
        timeout: float | None,
        request: pb.CompileRequest,
        call: CompileCall,
    ) -> Flow[pb.CompileResponse]:
        """Finish a call, and make others with what the server lacks."""
        requests, route = prepared.requests, call.route
        tries_left, place = _MAX_TRIES, route.place
        while True:
            try:
                response = yield from self._calls.finish_compile(call)
            except MissingBlobsError as missing:
                if route.place != place:  # another replica, which may lack everything
                    tries_left, place = _MAX_TRIES, route.place
                tries_left -= 1
                if not tries_left:
                    raise
                if request.request_token:
                    requests.short.pop(place.replica, None)
                    request = requests.whole
                else:
                    request = yield from self._with_missing(prepared, request, missing, route)
                call = yield from self._calls.start_compile(request, route, timeout)
            else:
                replica = route.place.replica
                self._sent.add((replica, prepared.encoded.digest))
                if response.request_token and request is requests.whole:
                    requests.short[replica] = pb.CompileRequest(
                        request_token=response.request_token
                    )
                return response

    def _route(self, prepared: Prepared) -> Route:
        return self._calls.replicas.route(prepared.encoded.digest)

    def _with_missing(
        self,
        prepared: Prepared,
        request: pb.CompileRequest,
        missing: MissingBlobsError,
        route: Route,
    ) -> Flow[pb.CompileRequest]:
        """The request with what was missing; uploads the blobs that it names."""
        request, blobs = self._preparer.provide_missing(prepared, request, missing.subjects)
        values = [subject for subject in missing.subjects if subject.startswith(VALUE_SUBJECT)]
        if values:
            # The next request includes the values at once, which saves a round trip.
            prepared.requests.reads = tuple(values)
        if blobs:
            yield from self._calls.upload(blobs, route, self._on_upload)
        return request
