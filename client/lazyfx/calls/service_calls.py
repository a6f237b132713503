"""The service's methods as flows: statuses become errors, streams become bytes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message

from lazyfx.calls.failover import Failover
from lazyfx.calls.replicas import HedgeAfter, HedgeDelay, Replicas, Route
from lazyfx.calls.retries import RetryBudget, timeout_seconds
from lazyfx.calls.uploading import Progress, upload
from lazyfx.calls.watching import SilentServerError
from lazyfx.capture.blob import Blob
from lazyfx.errors import (
    OverloadedError,
    ProtocolError,
    UnavailableError,
)
from lazyfx.flows import Call, Finish, First, Flow, Next, Open, Send, Start
from lazyfx.shared import grpc_status
from lazyfx.shared.answers.answer_bounds import DEFAULT_BOUNDS, AnswerBounds
from lazyfx.shared.answers.downloads import Download, OnProgress
from lazyfx.shared.answers.responses import check_response
from lazyfx.shared.printable import make_printable
from lazyfx.trust.access import Tls
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

Answer = TypeVar("Answer", bound=Message)
RequestFor: TypeAlias = Callable[[int], pb.CompileRequest]

# Maximum length of one text in an answer about the server.
_MAX_TEXT: Final = 65_536
# Between two answers of a stream, one whole compile may pass; uploads are expected to send at least
# this many bytes a second.
_SLOWEST_UPLOAD: Final = 128 * 1024
# How long a replica may stay silent after another one has said that it lacks the graph.
_SILENT_SECONDS: Final = 0.5
# How long two replicas are waited for at once. Whether they are frozen is not watched meanwhile.
_RACE_SECONDS: Final = 2.0


class CompileCall:
    """A compile in progress.

    Attributes:
        request: The request.
        retry_budget: Time for all tries together.
        route: The replicas to which it goes.
        first: The call of the first try.
        second_request: The request for another replica, by its index, which is asked if the first
            is slow; None if none is.
    """

    def __init__(
        self,
        request: bytes,
        retry_budget: RetryBudget,
        route: Route,
        first: Call,
        second_request: RequestFor | None = None,
    ) -> None:
        self.request = request
        self.retry_budget = retry_budget
        self.route = route
        self.first = first
        self.second_request = second_request


class ServiceCalls:
    """The calls to a server, or to its replicas.

    A call that the server refuses for now is retried after the server's delay, within its timeout.
    If a replica stops or breaks, the call is made again to another one.

    Args:
        replicas: Where calls go.
        timeout: Default timeout of a call, in seconds.
        tls: How the connection is encrypted.
        bounds: Bounds on answers of the server.
        hedge_after: Seconds after which a second replica is asked for what may be a hit, or "auto";
            None for never.

    Attributes:
        replicas: Where calls go.
        timeout: The default timeout.
        failover: Where they go on if a server does not answer.
    """

    def __init__(
        self,
        replicas: Replicas,
        *,
        timeout: float,
        tls: Tls | None,
        bounds: AnswerBounds = DEFAULT_BOUNDS,
        hedge_after: HedgeAfter | None = None,
    ) -> None:
        self._hedge: HedgeDelay | None = None
        if hedge_after is not None and replicas.are_several:
            self._hedge = HedgeDelay(hedge_after)
        self._bounds = bounds
        self.replicas = replicas
        self.timeout = timeout_seconds(timeout, timeout)
        self.failover = Failover(replicas, tls)

    @property
    def address(self) -> str:
        """The addresses, joined by commas."""
        return ",".join(self.replicas.addresses)

    def start_compile(
        self,
        request: pb.CompileRequest,
        route: Route,
        timeout: float | None = None,
        second_request: RequestFor | None = None,
    ) -> Flow[CompileCall]:
        """Start one compile; the request is sent during the next pause.

        Args:
            request: The request.
            route: Where it goes.
            timeout: Seconds that it may take.
            second_request: The request for another replica; None if only this one is to be asked.
        """
        data = request.SerializeToString()
        retry_budget = RetryBudget(timeout_seconds(timeout, self.timeout))
        if self._hedge is None or not _may_be_hit(request):
            second_request = None
        is_raced = second_request is not None
        yield from self.failover.refuse_silence(route)
        first = yield Start("Compile", data, retry_budget.left(), route.place, is_raced)
        return CompileCall(data, retry_budget, route, first, second_request)

    def finish_compile(self, call: CompileCall) -> Flow[pb.CompileResponse]:
        """Wait for the answer to a compile.

        Raises:
            ClosedError: The client was closed meanwhile.
            ServiceError: A subclass, by the status that the server returned.
            ProtocolError: The answer is malformed.
        """
        if call.second_request is not None and self._hedge is not None:
            began = time.monotonic()
            yield from self._race(call, call.second_request, self._hedge.seconds)
            self._hedge.record(time.monotonic() - began)
        response = yield from self._retried(
            "Compile", call.request, pb.CompileResponse, call.retry_budget, call.route, call.first
        )
        check_response(response, self._bounds)
        self.replicas.remember_home(response.module_key, call.route.place)
        return response

    def _race(
        self, call: CompileCall, second_request: RequestFor, hedge_seconds: float
    ) -> Flow[None]:
        """Wait for the call; if it is slow, ask another replica, and go on with the first answer.

        If neither answers soon, it goes on with the first replica.

        The idea is the hedged request of Dean and Barroso, "The Tail at Scale" (2013).
        """
        place = call.route.other()
        if place is None or (yield First([call.first], hedge_seconds)) is not None:
            return
        data, left = second_request(place.replica).SerializeToString(), call.retry_budget.left()
        slower = second = yield Start("Compile", data, left, place, is_raced=True)
        try:
            if (yield First([call.first, second], _RACE_SECONDS)) == 1:
                try:
                    yield Finish(second, place)
                except grpc.RpcError as error:
                    # A replica that lacks the graph, or breaks, has not answered: the first may.
                    # But it is given the graph if the first one stays silent.
                    is_broken = not grpc_status.is_from_server(error)
                    if is_broken or (yield First([call.first], _SILENT_SECONDS)) is not None:
                        return
                slower, call.first = call.first, second
                call.route.move_to(place)
        finally:
            slower.cancel()

    def open_batch(self, requests: Iterator[bytes], count: int, route: Route) -> Flow[Call]:
        """Start a stream of compiles; each may take as long as a single call."""
        seconds = self.timeout * max(1, count)
        yield from self.failover.refuse_silence(route)
        call: Call = yield Open("CompileBatch", requests, seconds, route.place)
        return call

    def next_of_batch(self, call: Call, route: Route) -> Flow[pb.CompileBatchResponse | None]:
        """The next answer of a stream of compiles; None at its end.

        Raises:
            ServiceError: The stream as a whole failed.
            ProtocolError: An answer is malformed.
        """
        with self.failover.errors(route):
            data = yield Next(call, route.place)
        if data is None:
            return None
        response = parsed(pb.CompileBatchResponse, data)
        if response.HasField("response"):
            check_response(response.response, self._bounds)
            self.replicas.remember_home(response.response.module_key, route.place)
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
        seconds = timeout_seconds(timeout, self.timeout)
        retry_budget = RetryBudget(seconds)
        route = self.replicas.route(home=request.module_key)
        resumed = False
        while True:
            try:
                yield from self._download(request, download, route, seconds)
            except OverloadedError as refusal:
                yield from retry_budget.wait(refusal)
            except UnavailableError as error:
                is_silent = isinstance(error.__cause__, SilentServerError)
                begun = download.received and error.retry_after is None
                if begun and not resumed and not is_silent:
                    resumed = True
                    continue
                yield from self.failover.find_another(error, retry_budget, route)
                # Another replica may have built it itself, into other bytes.
                if self.replicas.are_several:
                    download, resumed = Download(request, self._bounds, on_progress), False
            else:
                route.answered()
                return download.finish()

    def _download(
        self, request: pb.GetArtifactRequest, download: Download, route: Route, seconds: float
    ) -> Flow[None]:
        wanted = pb.GetArtifactRequest()
        wanted.CopyFrom(request)
        wanted.offset = download.received
        call: Call = yield Open("GetArtifact", wanted.SerializeToString(), seconds, route.place)
        download.begin()
        try:
            with self.failover.errors(route):
                while (part := (yield Next(call, route.place))) is not None:
                    download.take(parsed(pb.GetArtifactResponse, part))
        finally:
            call.cancel()  # stop reading from a server that sends too much

    def upload(
        self, blobs: Sequence[Blob], route: Route, on_progress: Progress | None = None
    ) -> Flow[None]:
        """Send the blobs that the server lacks; see `uploading.upload`.

        Raises:
            ServiceError: A subclass, by the status that the server returned.
        """

        def find(digests: Sequence[graph_pb2.Digest]) -> Flow[pb.FindMissingBlobsResponse]:
            request = pb.FindMissingBlobsRequest(digests=digests)
            return self._ask("FindMissingBlobs", request, pb.FindMissingBlobsResponse, route)

        def send(chunks: Iterator[bytes]) -> Flow[pb.UploadBlobsResponse]:
            with self.failover.errors(route):
                data = yield Send("UploadBlobs", chunks, seconds, route.place)
            return parsed(pb.UploadBlobsResponse, data)

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

    def _ask(
        self, method: str, request: Message, kind: type[Answer], route: Route | None = None
    ) -> Flow[Answer]:
        data, retry_budget = request.SerializeToString(), RetryBudget(self.timeout)
        return self._retried(method, data, kind, retry_budget, route or self.replicas.route())

    def _retried(
        self,
        method: str,
        request: bytes,
        kind: type[Answer],
        retry_budget: RetryBudget,
        route: Route,
        first: Call | None = None,
    ) -> Flow[Answer]:
        """The answer to a call, which is retried while the server refuses it for now."""
        call = first
        if call is None:
            yield from self.failover.refuse_silence(route)
        while True:
            try:
                with self.failover.errors(route):
                    if call is None:
                        call = yield Start(method, request, retry_budget.left(), route.place)
                    data = yield Finish(call, route.place)
                route.answered()
                return parsed(kind, data)
            except OverloadedError as refusal:
                yield from retry_budget.wait(refusal)
            except UnavailableError as error:
                yield from self.failover.find_another(error, retry_budget, route)
            call = None


def _may_be_hit(request: pb.CompileRequest) -> bool:
    """Whether a request only names its graph, as one does that was answered before."""
    return not (request.HasField("graph") or request.values)


def parsed(kind: type[Answer], data: bytes | None) -> Answer:
    """Parse an answer, which may be malformed or missing."""
    if data is not None:
        with contextlib.suppress(ProtobufError, UnicodeDecodeError, RecursionError):
            return kind.FromString(data)
    raise ProtocolError("the server's answer cannot be parsed")
