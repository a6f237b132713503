"""Many compiles over one stream, or individually where the stream cannot be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lazyfx.calls.conversation import CompileCaller
from lazyfx.calls.service_calls import ServiceCalls
from lazyfx.capture.preparing import Prepared
from lazyfx.errors import (
    LazyfxError,
    MissingBlobsError,
    OverloadedError,
    ProtocolError,
    ServerFaultError,
    UnavailableError,
)
from lazyfx.flows import Call, Flow
from lazyfx.shared.grpc_status import is_from_server, status_to_error
from lazyfx.v1 import compiler_pb2 as pb


class ManyCompiles:
    """The compiles of many prepared requests; must be closed.

    Args:
        calls: The calls of the server.
        caller: Sends individual compile requests.
        prepared: What to compile.

    Attributes:
        prepared: What to compile.
    """

    def __init__(
        self, calls: ServiceCalls, caller: CompileCaller, prepared: Sequence[Prepared]
    ) -> None:
        self._calls = calls
        self._caller = caller
        self.prepared = prepared
        self._due = set(range(len(prepared)))
        self._in_stream = {i for i, job in enumerate(prepared) if job.fits_one_message}
        self._stream: Call | None = None
        self._route = calls.replicas.route()
        self._is_streaming = True

    def next(self) -> Flow[tuple[int, pb.CompileResponse | LazyfxError] | None]:
        """The index and result of the next finished request; None when all are done.

        Raises:
            ServiceError: The stream as a whole failed.
            ProtocolError: An answer is malformed, is for another request, or is repeated.
        """
        if self._is_streaming:
            answer = yield from self._streamed()
            if answer is not None:
                i = answer.request_id
                self._due.discard(i)
                return i, (yield from self._result(self.prepared[i], answer))
            self._is_streaming = False
            self.close()
        if not self._due:
            return None
        # Sent individually: requests that are too large for the stream and, if the server refused
        # the stream for now, all others, each after its retry delay.
        i = min(self._due)
        self._due.discard(i)
        return i, (yield from self._alone(self.prepared[i]))

    def close(self) -> None:
        """Cancel the stream, unless it has ended."""
        if self._stream is not None:
            self._stream.cancel()

    def _streamed(self) -> Flow[pb.CompileBatchResponse | None]:
        """The next answer of the stream; None at its end, or if it was refused for now."""
        due = self._due & self._in_stream
        try:
            if self._stream is None:
                requests = self._requests(sorted(due))
                self._stream = yield from self._calls.open_batch(requests, len(due), self._route)
            answer = yield from self._calls.next_of_batch(self._stream, self._route)
        except UnavailableError:
            # Its replica stops or broke: another one gets the rest, one by one.
            if not self._calls.replicas.are_several:
                raise
            self._route.move()
            return None
        except OverloadedError as refusal:
            if refusal.retry_after is None:
                raise
            return None
        except ServerFaultError as error:
            # If a server ends a stream while the client is writing, gRPC loses its status and
            # reports an internal error instead (grpc/grpc issue 36066).
            if is_from_server(error.__cause__):
                raise
            return None
        if answer is None and due:
            raise ProtocolError(
                f"the stream ended with {len(due)} of {len(self._in_stream)} answers outstanding"
            )
        if answer is not None and answer.request_id not in due:
            raise ProtocolError("an answer to an unknown request", field="request_id")
        return answer

    def _requests(self, due: Sequence[int]) -> Iterator[bytes]:
        for i in due:
            job = self.prepared[i]
            request = pb.CompileBatchRequest(request_id=i, request=job.requests.whole)
            request.request.graph.CopyFrom(job.encoded.message())
            yield request.SerializeToString()

    def _result(
        self, job: Prepared, answer: pb.CompileBatchResponse
    ) -> Flow[pb.CompileResponse | LazyfxError]:
        if answer.HasField("response"):
            return answer.response
        error: LazyfxError = status_to_error(answer.error)
        refused_for_now = isinstance(error, OverloadedError) and error.retry_after is not None
        if isinstance(error, MissingBlobsError) or refused_for_now:
            # Values that passes read are sent outside the stream. Requests refused for now are
            # retried.
            return (yield from self._alone(job))
        return error

    def _alone(self, job: Prepared) -> Flow[pb.CompileResponse | LazyfxError]:
        try:
            return (yield from self._caller.ask(job))
        except LazyfxError as error:
            return error
