"""The service's methods as flows: statuses become errors, streams become bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message

from lazyfx.answers.answer_bounds import DEFAULT_BOUNDS, AnswerBounds
from lazyfx.answers.downloads import Download, OnProgress
from lazyfx.answers.responses import check_response
from lazyfx.calls.diagnosing import diagnose, is_through_a_proxy, not_a_server
from lazyfx.calls.retries import ExpectedReturn, RetryBudget
from lazyfx.calls.uploading import Progress, upload
from lazyfx.capture.blob import Blob
from lazyfx.errors import (
    OverloadedError,
    ProtocolError,
    ServiceError,
    TimedOutError,
    UnavailableError,
)
from lazyfx.flows import AwaitConnection, Call, Finish, Flow, Next, Offload, Open, Send, Start
from lazyfx.shared import grpc_status
from lazyfx.shared.printable import make_printable, printable
from lazyfx.trust.access import Tls
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

Answer = TypeVar("Answer", bound=Message)

# Maximum length of one text in an answer about the server.
_MAX_TEXT: Final = 65_536
# Between two answers of a stream, one whole compile may pass; uploads are expected to send at least
# this many bytes a second.
_SLOWEST_UPLOAD: Final = 128 * 1024
# A first connection takes a few round trips. After this time, another connection is tried.
_SILENT_SECONDS: Final = 0.8


class CompileCall:
    """A compile in progress.

    Attributes:
        request: The request.
        retry_budget: Time for all tries together.
        first: The call of the first try.
    """

    def __init__(self, request: bytes, retry_budget: RetryBudget, first: Call) -> None:
        self.request = request
        self.retry_budget = retry_budget
        self.first = first


class ServiceCalls:
    """The calls to one server.

    A call that the server refuses for now is retried after the server's delay, within its timeout.

    Args:
        address: "host:port".
        timeout: Default timeout of a call, in seconds.
        tls: How the connection is encrypted.
        bounds: Bounds on answers of the server.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float,
        tls: Tls | None,
        bounds: AnswerBounds = DEFAULT_BOUNDS,
    ) -> None:
        self._bounds = bounds
        self.address = address
        self.timeout = timeout
        self._tls = tls
        self._return = ExpectedReturn()
        self._is_known = False

    def start_compile(
        self, request: pb.CompileRequest, timeout: float | None = None
    ) -> Flow[CompileCall]:
        """Start one compile; the request is sent during the next pause."""
        data, retry_budget = request.SerializeToString(), RetryBudget(timeout or self.timeout)
        yield from self._refuse_silence()
        first = yield Start("Compile", data, retry_budget.left())
        return CompileCall(data, retry_budget, first)

    def finish_compile(self, call: CompileCall) -> Flow[pb.CompileResponse]:
        """Wait for the answer to a compile.

        Raises:
            ClosedError: The client was closed meanwhile.
            ServiceError: A subclass, by the status that the server returned.
            ProtocolError: The answer is malformed.
        """
        response = yield from self._retried(
            "Compile", call.request, pb.CompileResponse, call.retry_budget, first=call.first
        )
        check_response(response, self._bounds)
        return response

    def open_batch(self, requests: Iterator[bytes], count: int) -> Flow[Call]:
        """Start a stream of compiles; each may take as long as a single call."""
        yield from self._refuse_silence()
        call: Call = yield Open("CompileBatch", requests, self.timeout * max(1, count))
        return call

    def next_of_batch(self, call: Call) -> Flow[pb.CompileBatchResponse | None]:
        """The next answer of a stream of compiles; None at its end.

        Raises:
            ServiceError: The stream as a whole failed.
            ProtocolError: An answer is malformed.
        """
        with self._errors():
            data = yield Next(call)
        if data is None:
            return None
        response = _parsed(pb.CompileBatchResponse, data)
        if response.HasField("response"):
            check_response(response.response, self._bounds)
        return response

    def artifact(
        self,
        request: pb.GetArtifactRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Flow[tuple[bytes, pb.ArtifactTrailer]]:
        """Fetch one complete artifact; an interrupted download is resumed once where it stopped.

        Args:
            request: Names the artifact.
            timeout: Seconds that each attempt may take, and all waits between attempts together.
            on_progress: Called with the progress while a native artifact is built.

        Raises:
            ArtifactError: The received bytes are not what the server announced.
            ProtocolError: It is larger than the bounds allow, or its chunks are out of order.
            ServiceError: A subclass, by the status that the server returned.
        """
        download = Download(request, self._bounds, on_progress)
        retry_budget = RetryBudget(timeout or self.timeout)
        resumed = False
        while True:
            try:
                yield from self._download(request, download, timeout or self.timeout)
            except OverloadedError as refusal:
                yield from retry_budget.wait(refusal)
            except UnavailableError as error:
                is_restarting = error.retry_after is not None or self._return.is_expected
                if is_restarting and not download.received:
                    yield from self._wait_for_server(error, retry_budget)
                    continue
                if resumed or not download.received:
                    yield from self._raise_with_diagnosis(error)
                resumed = True
            else:
                return download.finish()

    def _download(
        self, request: pb.GetArtifactRequest, download: Download, seconds: float
    ) -> Flow[None]:
        wanted = pb.GetArtifactRequest()
        wanted.CopyFrom(request)
        wanted.offset = download.received
        call: Call = yield Open("GetArtifact", wanted.SerializeToString(), seconds)
        download.begin()
        try:
            with self._errors():
                while (part := (yield Next(call))) is not None:
                    download.take(_parsed(pb.GetArtifactResponse, part))
        finally:
            call.cancel()  # stop reading from a server that sends too much

    def upload(self, blobs: Sequence[Blob], on_progress: Progress | None = None) -> Flow[None]:
        """Send the blobs that the server lacks; see `uploading.upload`.

        Raises:
            ServiceError: A subclass, by the status that the server returned.
        """

        def find(digests: Sequence[graph_pb2.Digest]) -> Flow[pb.FindMissingBlobsResponse]:
            request = pb.FindMissingBlobsRequest(digests=digests)
            return self._ask("FindMissingBlobs", request, pb.FindMissingBlobsResponse)

        def send(chunks: Iterator[bytes]) -> Flow[pb.UploadBlobsResponse]:
            with self._errors():
                data = yield Send("UploadBlobs", chunks, seconds)
            return _parsed(pb.UploadBlobsResponse, data)

        size = sum(blob.digest.size_bytes for blob in blobs)
        seconds = self.timeout + size / _SLOWEST_UPLOAD
        retry_budget = RetryBudget(self.timeout)
        yield from upload(blobs, find, send, on_progress, on_refused=retry_budget.wait)

    def passes(self) -> Flow[pb.ListPassesResponse]:
        """The passes that the server runs."""
        return self._describe("ListPasses", pb.ListPassesRequest(), pb.ListPassesResponse)

    def server_info(self) -> Flow[pb.GetServerInfoResponse]:
        """Versions, devices, limits."""
        return self._describe("GetServerInfo", pb.GetServerInfoRequest(), pb.GetServerInfoResponse)

    def stats(self) -> Flow[pb.GetStatsResponse]:
        """The server's statistics."""
        return self._describe("GetStats", pb.GetStatsRequest(), pb.GetStatsResponse)

    def _describe(self, method: str, request: Message, kind: type[Answer]) -> Flow[Answer]:
        """An answer for people to read; its texts are made safe to print."""
        answer = yield from self._ask(method, request, kind)
        make_printable(answer, _MAX_TEXT)
        return answer

    def _ask(self, method: str, request: Message, kind: type[Answer]) -> Flow[Answer]:
        data, retry_budget = request.SerializeToString(), RetryBudget(self.timeout)
        return self._retried(method, data, kind, retry_budget)

    def _retried(
        self,
        method: str,
        request: bytes,
        kind: type[Answer],
        retry_budget: RetryBudget,
        first: Call | None = None,
    ) -> Flow[Answer]:
        """The answer to a call, which is retried while the server refuses it for now."""
        call = first
        if call is None:
            yield from self._refuse_silence()
        while True:
            try:
                with self._errors():
                    if call is None:
                        call = yield Start(method, request, retry_budget.left())
                    data = yield Finish(call)
                return _parsed(kind, data)
            except (OverloadedError, UnavailableError) as refusal:
                call = None
                if isinstance(refusal, OverloadedError):
                    yield from retry_budget.wait(refusal)
                else:
                    yield from self._wait_for_server(refusal, retry_budget)

    def _refuse_silence(self) -> Flow[None]:
        """Before the first call: fail if the server does not answer a connection attempt.

        gRPC would wait for the end of the attempt, see `channel`.

        Raises:
            UnavailableError: It does not; says why.
        """
        if self._is_known:
            return
        if not (yield AwaitConnection(_SILENT_SECONDS)) and not is_through_a_proxy():
            reason = yield Offload(partial(diagnose, self.address, self._tls))
            if reason is not None:
                raise UnavailableError(reason, code="UNAVAILABLE")
        self._is_known = True

    def _wait_for_server(self, error: UnavailableError, retry_budget: RetryBudget) -> Flow[None]:
        """Wait for a server that starts, stops or is being replaced.

        Raises:
            UnavailableError: It cannot be reached, and has not said that it will be back.
        """
        # A starting or stopping server sends a retry delay.
        self._return.note(error)
        if error.retry_after is None and not self._return.is_expected:
            yield from self._raise_with_diagnosis(error)
        yield from retry_budget.wait(error, is_expected=True)

    def _raise_with_diagnosis(self, error: UnavailableError) -> Flow[NoReturn]:
        """Raise the error, with the reason why no call reaches the server if it can be found."""
        cause = error.__cause__
        details = (cause.details() or "") if isinstance(cause, grpc.RpcError) else ""
        told = not_a_server(self.address, printable(details)) is not None
        if told or grpc_status.is_from_server(cause) or error.code != "UNAVAILABLE":
            raise error
        reason = yield Offload(partial(diagnose, self.address, self._tls))
        if reason is None:
            reason = (
                f"the connection to {self.address} broke or was not established in time, but the "
                f"server can be reached now; try again (details: {error.reason})"
            )
        raise UnavailableError(reason, code=error.code) from error

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Converts gRPC's errors into this package's errors."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._service_error(error) from error

    def _service_error(self, error: grpc.RpcError) -> ServiceError:
        """The server's error; for gRPC's own errors, with a message that says what to do."""
        code, details = error.code(), error.details() or ""
        if grpc_status.is_from_server(error):
            return grpc_status.to_error(error)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            told = (
                f"the server at {self.address} did not answer within the timeout of the call; "
                "allow more with timeout= (--timeout, LAZYFX_TIMEOUT)"
            )
            return TimedOutError(told, code=code.name)
        if other := not_a_server(self.address, printable(details)):
            return UnavailableError(other, code=code.name)
        return grpc_status.to_error(error)


def _parsed(kind: type[Answer], data: bytes | None) -> Answer:
    """Parse an answer, which may be malformed or missing."""
    if data is not None:
        with contextlib.suppress(ProtobufError, UnicodeDecodeError, RecursionError):
            return kind.FromString(data)
    raise ProtocolError("the server's answer cannot be parsed")
