"""The calls of the service over one channel: statuses become errors, streams become bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, NoReturn, Protocol, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from lazyfx.answers.answer_bounds import DEFAULT_BOUNDS, AnswerBounds
from lazyfx.answers.downloads import Download, OnProgress
from lazyfx.answers.responses import check_response
from lazyfx.calls import forking
from lazyfx.calls.channel import open_channel
from lazyfx.calls.diagnosing import diagnose, not_a_server
from lazyfx.calls.retries import RetryBudget
from lazyfx.calls.uploading import Progress, upload
from lazyfx.capture.blob import Blob
from lazyfx.errors import (
    ClosedError,
    OverloadedError,
    ProtocolError,
    ServiceError,
    TimedOutError,
    UnavailableError,
)
from lazyfx.shared import grpc_status
from lazyfx.shared.printable import make_printable, printable
from lazyfx.trust.access import Access
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub

Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer", bound=Message)
AnswerOut = TypeVar("AnswerOut", covariant=True)
AnyCall = TypeVar("AnyCall")

# Characters of one text in an answer about the server.
_MAX_TEXT = 65_536
# Answers of a stream of compiles may be as far apart as one compile is long; uploads have this
# many bytes a second at least.
_SLOWEST_UPLOAD = 128 * 1024

_CLOSED_MEANWHILE: Final = "the client was closed while this call was waiting"

# How a call is started that may take so many seconds.
Start: TypeAlias = "Callable[[float], Call[Answer]]"


class Call(Protocol[AnswerOut]):
    """A call of gRPC's under way that has one answer."""

    def __await__(self) -> Generator[Any, None, AnswerOut]: ...

    def cancel(self) -> bool:
        """Leave it; tells whether it was under way."""


class CompileCall:
    """A compile under way: its first try.

    Attributes:
        start: Starts another one.
        retry_budget: For all of them together.
        first: The first.
    """

    def __init__(self, start: Start[pb.CompileResponse], retry_budget: RetryBudget) -> None:
        self.start = start
        self.retry_budget = retry_budget
        self.first = start(retry_budget.left())

    def cancel(self) -> None:
        """Leave it, if it has not ended."""
        self.first.cancel()


class Connection:
    """A channel to one server. Belongs to the event loop in which it was made.

    A call that the server refuses for now is made again when the server says, within its timeout.

    Args:
        address: "host:port".
        timeout: Default timeout of a call, in seconds.
        access: What to show, and whom to believe.
        bounds: How much of an answer is taken.

    Raises:
        ForkedProcessError: This process was forked after a client had been opened in its parent.
        LazyfxError: A certificate cannot be read, or a token would travel in the clear.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float,
        access: Access,
        bounds: AnswerBounds = DEFAULT_BOUNDS,
    ) -> None:
        forking.mark_grpc_used()
        self._bounds = bounds
        self.address = address
        self.timeout = timeout
        self._metadata = access.metadata(address)
        self._tls = access.tls
        self._channel = open_channel(address, access.tls)
        self._stub = GraphCompilerStub(self._channel)
        self._closing = asyncio.Event()
        forking.leak_in_children(self)

    def require_open(self) -> None:
        """Fail at once where no call can be made.

        Raises:
            ClosedError: The connection was closed.
            ForkedProcessError: It belongs to the process that this one was forked from.
        """
        forking.require_not_forked()
        if self._closing.is_set():
            raise ClosedError

    async def close(self) -> None:
        """Close the channel; calls under way raise ClosedError.

        Raises:
            ForkedProcessError: It belongs to the process that this one was forked from.
        """
        forking.require_not_forked()
        if not self._closing.is_set():
            self._closing.set()
            await self._channel.close()

    async def is_ready(self, seconds: float) -> bool:
        """Whether a connection to the server can be established within that many seconds."""
        retry_budget = RetryBudget(seconds, self._closing)
        while True:
            self.require_open()
            state = self._channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return True
            change = self._channel.wait_for_state_change(state)
            try:
                await asyncio.wait_for(change, retry_budget.left())
            except asyncio.TimeoutError:
                return False

    def start_compile(
        self, request: pb.CompileRequest, timeout: float | None = None
    ) -> CompileCall:
        """Start one compile: it is sent when the event loop next runs its tasks."""

        def start(seconds: float) -> Call[pb.CompileResponse]:
            return self._tracked(
                self._stub.Compile(request, timeout=seconds, metadata=self._metadata)
            )

        self.require_open()
        return CompileCall(start, RetryBudget(timeout or self.timeout, self._closing))

    async def finish_compile(self, call: CompileCall) -> pb.CompileResponse:
        """Wait for the answer to a compile.

        Raises:
            ClosedError: The connection was closed meanwhile.
            ServiceError: A subclass, by the status that the server returned.
            ProtocolError: The answer is malformed.
        """
        response = await self._unary(call.start, call.retry_budget, first=call.first)
        check_response(response, self._bounds)
        return response

    async def compile_batch(
        self, requests: AsyncIterator[pb.CompileBatchRequest], ids: AbstractSet[int]
    ) -> AsyncIterator[pb.CompileBatchResponse]:
        """Ask for many compiles; answers come as they finish.

        Args:
            requests: One for each id.
            ids: Of the requests, each of which may take as long as a call.

        Yields:
            One answer for each.

        Raises:
            ServiceError: The stream as a whole failed.
            ProtocolError: An answer is malformed, to another request, or a second one.
        """
        self.require_open()
        call = self._tracked(
            self._stub.CompileBatch(
                requests, timeout=self.timeout * max(1, len(ids)), metadata=self._metadata
            )
        )
        due = set(ids)
        try:
            with self._errors():
                async for response in call:
                    _require_message(response)
                    if response.request_id not in due:
                        raise ProtocolError("an answer to an unknown request", field="request_id")
                    due.remove(response.request_id)
                    if response.HasField("response"):
                        check_response(response.response, self._bounds)
                    yield response
            if due:
                raise ProtocolError(
                    f"the stream ended with {len(due)} of {len(ids)} answers outstanding"
                )
        finally:
            call.cancel()

    async def artifact(
        self,
        request: pb.GetArtifactRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> tuple[bytes, pb.ArtifactTrailer]:
        """Fetch one artifact whole; a download that breaks off is resumed once where it stopped.

        Args:
            request: Which one.
            timeout: Seconds that each attempt may take, and waits between attempts together.
            on_progress: Told how far a native artifact is while it is being made.

        Raises:
            ArtifactError: What arrived is not what the server announced.
            ProtocolError: It is more than is taken, or its parts are out of order.
            ServiceError: A subclass, by the status that the server returned.
        """
        download = Download(request, self._bounds, on_progress)
        retry_budget = RetryBudget(timeout or self.timeout, self._closing)
        resumed = False
        while True:
            try:
                await self._download(request, download, timeout)
            except OverloadedError as refusal:
                await retry_budget.wait(refusal)
            except UnavailableError as error:
                if error.retry_after is not None and not download.received:
                    await retry_budget.wait(error)
                    continue
                if resumed or not download.received:
                    await self._raise_with_diagnosis(error)
                resumed = True
            else:
                return download.finish()

    async def _download(
        self, request: pb.GetArtifactRequest, download: Download, timeout: float | None
    ) -> None:
        wanted = pb.GetArtifactRequest()
        wanted.CopyFrom(request)
        wanted.offset = download.received
        self.require_open()
        call = self._tracked(
            self._stub.GetArtifact(wanted, timeout=timeout or self.timeout, metadata=self._metadata)
        )
        download.begin()
        try:
            with self._errors():
                async for part in call:
                    _require_message(part)
                    download.take(part)
        finally:
            call.cancel()  # a server that sends too much is not listened to any longer

    async def upload(self, blobs: Sequence[Blob], on_progress: Progress | None = None) -> None:
        """Send the blobs that the server lacks; see `uploading.upload`.

        Raises:
            ServiceError: A subclass, by the status that the server returned.
        """

        async def find(digests: Sequence[graph_pb2.Digest]) -> pb.FindMissingBlobsResponse:
            request = pb.FindMissingBlobsRequest(digests=digests)
            return await self._ask(self._stub.FindMissingBlobs, request)

        async def send(chunks: AsyncIterator[pb.UploadBlobsRequest]) -> pb.UploadBlobsResponse:
            self.require_open()
            call = self._stub.UploadBlobs(chunks, timeout=seconds, metadata=self._metadata)
            return await self._answer(self._tracked(call))

        size = sum(blob.digest.size_bytes for blob in blobs)
        seconds = self.timeout + size / _SLOWEST_UPLOAD
        retry_budget = RetryBudget(self.timeout, self._closing)
        await upload(blobs, find, send, on_progress, on_refused=retry_budget.wait)

    async def passes(self) -> pb.ListPassesResponse:
        """The passes that the server runs."""
        return await self._describe(self._stub.ListPasses, pb.ListPassesRequest())

    async def server_info(self) -> pb.GetServerInfoResponse:
        """Versions, devices, limits."""
        return await self._describe(self._stub.GetServerInfo, pb.GetServerInfoRequest())

    async def stats(self) -> pb.GetStatsResponse:
        """The server's ledger."""
        return await self._describe(self._stub.GetStats, pb.GetStatsRequest())

    async def _describe(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Answer], request: Request
    ) -> Answer:
        """An answer for people to read, its texts made safe to show."""
        answer = await self._ask(method, request)
        make_printable(answer, _MAX_TEXT)
        return answer

    async def _ask(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Answer], request: Request
    ) -> Answer:
        def start(seconds: float) -> Call[Answer]:
            return self._tracked(method(request, timeout=seconds, metadata=self._metadata))

        return await self._unary(start, RetryBudget(self.timeout, self._closing))

    async def _unary(
        self, start: Start[Answer], retry_budget: RetryBudget, first: Call[Answer] | None = None
    ) -> Answer:
        """The answer to a call, made again as often as the server refuses it for now."""
        call = first
        while True:
            self.require_open()
            try:
                return await self._answer(call or start(retry_budget.left()))
            except (OverloadedError, UnavailableError) as refusal:
                if isinstance(refusal, UnavailableError) and refusal.retry_after is None:
                    await self._raise_with_diagnosis(refusal)
                # A server that is starting or stopping says when to come back.
                call = None
                await retry_budget.wait(refusal)

    async def _answer(self, call: Call[Answer]) -> Answer:
        with self._errors():
            answer = await call
        _require_message(answer)
        return answer

    async def _raise_with_diagnosis(self, error: UnavailableError) -> NoReturn:
        """Raise the error, with the reason why no call gets through where one can be found."""
        cause = error.__cause__
        details = (cause.details() or "") if isinstance(cause, grpc.aio.AioRpcError) else ""
        told = not_a_server(self.address, printable(details)) is not None
        if told or grpc_status.is_from_server(cause) or error.code != "UNAVAILABLE":
            raise error
        reason = await asyncio.to_thread(diagnose, self.address, self._tls)
        if reason is None:
            reason = (
                f"the connection to {self.address} broke off or was not made in time, and the "
                f"server can be reached now; try again (details: {error.reason})"
            )
        raise UnavailableError(reason, code=error.code) from error

    def _in_our_words(self, error: grpc.aio.AioRpcError) -> ServiceError:
        """What a server answered; of gRPC's own errors, the sentence that says what to do."""
        code, details = error.code(), error.details() or ""
        if grpc_status.is_from_server(error):
            return grpc_status.to_error(error)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            told = (
                f"the server at {self.address} gave no answer in the time that the call may take; "
                "allow more with timeout= (--timeout, LAZYFX_TIMEOUT)"
            )
            return TimedOutError(told, code=code.name)
        if other := not_a_server(self.address, printable(details)):
            return UnavailableError(other, code=code.name)
        return grpc_status.to_error(error)

    def _tracked(self, call: AnyCall) -> AnyCall:
        forking.leak_in_children(call)
        return call

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What a call raises becomes what this package raises."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if self._closing.is_set():
                raise ClosedError(_CLOSED_MEANWHILE) from None
            raise self._in_our_words(error) from error
        except asyncio.CancelledError:
            # The channel cancels its calls when it closes; their callers did not cancel anything.
            if self._closing.is_set() and not _is_being_cancelled():
                raise ClosedError(_CLOSED_MEANWHILE) from None
            raise


def _is_being_cancelled() -> bool:
    """Whether the current task is being cancelled; False on Python 3.10, which cannot tell."""
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is not None and cancelling() > 0


def _require_message(answer: object) -> None:
    """Refuse what gRPC gives in place of an answer that it could not parse."""
    if not isinstance(answer, Message):
        raise ProtocolError("the server's answer cannot be parsed")
