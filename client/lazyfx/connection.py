"""The calls of the service over one channel: statuses become errors, streams become bytes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from lazyfx import status
from lazyfx.access import Access, Tls, read_file
from lazyfx.answers.bounds import DEFAULT_BOUNDS, AnswerBounds
from lazyfx.answers.downloads import Download, OnProgress
from lazyfx.answers.responses import check_response
from lazyfx.errors import ProtocolError, UnavailableError
from lazyfx.printable import make_printable
from lazyfx.uploading import Blob, Progress, upload
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub

Answer = TypeVar("Answer", bound=Message)

CompileCall: TypeAlias = "grpc.aio.UnaryUnaryCall[pb.CompileRequest, pb.CompileResponse]"

MAX_MESSAGE_BYTES = 64 * 2**20
# No answer is one large message: artifacts come in chunks.
MAX_ANSWER_BYTES = 16 * 2**20
# Characters of one text in an answer about the server.
_MOST_TEXT = 65_536
# Answers of a stream of compiles may be as far apart as one compile is long; uploads have this
# many bytes a second at least.
_SLOWEST_UPLOAD = 128 * 1024
_SERVICE = "lazyfx.v1.GraphCompiler"

# Every method is safe to repeat: compiles are keyed by content, uploads by digest.
_RETRIED = ("Compile", "FindMissingBlobs", "ListPasses", "GetServerInfo", "GetStats", "GetArtifact")
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE, "method": method} for method in _RETRIED],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS: Sequence[tuple[str, str | int]] = (
    ("grpc.enable_retries", 1),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    # A peer that vanished without a word is noticed within a minute, also between calls.
    ("grpc.keepalive_time_ms", 40_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Connections of one process to one server are shared unless told otherwise.
    ("grpc.use_local_subchannel_pool", 1),
)


class Connection:
    """A channel to one server. Belongs to the event loop in which it was made.

    Args:
        address: "host:port".
        timeout: Seconds that a call may take unless it says otherwise.
        access: What to show, and whom to believe.
        bounds: How much of an answer is taken.

    Raises:
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
        self._bounds = bounds
        self.address = address
        self.timeout = timeout
        self._metadata = access.metadata(address)
        self._channel = _channel(address, access.tls)
        self._stub = GraphCompilerStub(self._channel)

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await self._channel.close()

    def start_compile(
        self, request: pb.CompileRequest, timeout: float | None = None
    ) -> CompileCall:
        """Start one compile: it is sent when the event loop next runs its tasks."""
        return self._stub.Compile(request, timeout=timeout or self.timeout, metadata=self._metadata)

    async def finish_compile(self, call: CompileCall) -> pb.CompileResponse:
        """Wait for the answer to a compile.

        Raises:
            ServiceError: One of its kinds, by the status.
            ProtocolError: The answer is malformed.
        """
        response = await self._unary(call)
        check_response(response, self._bounds)
        return response

    async def compile_batch(
        self, requests: AsyncIterator[pb.CompileBatchRequest], count: int
    ) -> AsyncIterator[pb.CompileBatchResponse]:
        """Ask for many compiles; answers come as they finish.

        Args:
            requests: With ids from 0 to `count` - 1.
            count: How many there are; each may take as long as a call.

        Yields:
            One answer for each.

        Raises:
            ServiceError: The stream as a whole failed.
            ProtocolError: An answer is malformed, to another request, or a second one.
        """
        call = self._stub.CompileBatch(
            requests, timeout=self.timeout * max(1, count), metadata=self._metadata
        )
        due = set(range(count))
        try:
            async for response in call:
                _require(response)
                if response.request_id not in due:
                    raise ProtocolError("an answer to no request", field="request_id")
                due.remove(response.request_id)
                if response.HasField("response"):
                    check_response(response.response, self._bounds)
                yield response
            if due:
                raise ProtocolError(f"the stream ended before {len(due)} of {count} answers")
        except grpc.aio.AioRpcError as error:
            raise status.to_error(error) from error
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
            timeout: Seconds that each attempt may take.
            on_progress: Told how far a native artifact is while it is being made.

        Raises:
            ArtifactError: What arrived is not what the server announced.
            ProtocolError: It is more than is taken, or its parts are out of order.
            ServiceError: One of its kinds, by the status.
        """
        download = Download(request, self._bounds, on_progress)
        try:
            await self._download(request, download, timeout)
        except UnavailableError:
            if not download.received:
                raise
            resumed = pb.GetArtifactRequest()
            resumed.CopyFrom(request)
            resumed.offset = download.received
            await self._download(resumed, download, timeout)
        return download.finish()

    async def _download(
        self, request: pb.GetArtifactRequest, download: Download, timeout: float | None
    ) -> None:
        call = self._stub.GetArtifact(
            request, timeout=timeout or self.timeout, metadata=self._metadata
        )
        download.begin()
        try:
            async for part in call:
                _require(part)
                download.take(part)
        except grpc.aio.AioRpcError as error:
            raise status.to_error(error) from error
        finally:
            call.cancel()  # a server that sends too much is not listened to any longer

    async def upload(self, blobs: Sequence[Blob], on_progress: Progress | None = None) -> None:
        """Send the blobs that the server lacks; see `uploading.upload`.

        Raises:
            ServiceError: One of its kinds, by the status.
        """

        async def find(digests: Sequence[graph_pb2.Digest]) -> pb.FindMissingBlobsResponse:
            request = pb.FindMissingBlobsRequest(digests=digests)
            call = self._stub.FindMissingBlobs(
                request, timeout=self.timeout, metadata=self._metadata
            )
            return await self._unary(call)

        async def send(chunks: AsyncIterator[pb.UploadBlobsRequest]) -> pb.UploadBlobsResponse:
            call = self._stub.UploadBlobs(chunks, timeout=seconds, metadata=self._metadata)
            return await self._unary(call)

        size = sum(blob.digest.size_bytes for blob in blobs)
        seconds = self.timeout + size / _SLOWEST_UPLOAD
        await upload(blobs, find, send, on_progress)

    async def passes(self) -> pb.ListPassesResponse:
        """The passes that the server runs."""
        call = self._stub.ListPasses(
            pb.ListPassesRequest(), timeout=self.timeout, metadata=self._metadata
        )
        return await self._told(call)

    async def server_info(self) -> pb.GetServerInfoResponse:
        """Versions, devices, limits."""
        call = self._stub.GetServerInfo(
            pb.GetServerInfoRequest(), timeout=self.timeout, metadata=self._metadata
        )
        return await self._told(call)

    async def stats(self) -> pb.GetStatsResponse:
        """The server's ledger."""
        return await self._told(
            self._stub.GetStats(pb.GetStatsRequest(), timeout=self.timeout, metadata=self._metadata)
        )

    async def _told(self, call: Awaitable[Answer]) -> Answer:
        """An answer for people to read, its texts made safe to show."""
        answer = await self._unary(call)
        make_printable(answer, _MOST_TEXT)
        return answer

    @staticmethod
    async def _unary(call: Awaitable[Answer]) -> Answer:
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            raise status.to_error(error) from error
        _require(answer)
        return answer


def _require(answer: object) -> None:
    """Refuse what gRPC gives in place of an answer that it could not parse."""
    if not isinstance(answer, Message):
        raise ProtocolError("the server's answer is not the message that it should be")


def _channel(address: str, tls: Tls | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read_file(tls.ca) if tls.ca else None,
        private_key=read_file(tls.key) if tls.key else None,
        certificate_chain=read_file(tls.certificate) if tls.certificate else None,
    )
    options = list(_OPTIONS)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return grpc.aio.secure_channel(address, credentials, options=options)
