"""The calls of the service over one channel: statuses become errors, streams become bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

import grpc
import grpc.aio

from lazyfx import status
from lazyfx.access import Access, Tls, read_file
from lazyfx.errors import ArtifactError, UnavailableError
from lazyfx.uploading import Blob, Progress, upload
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub

Answer = TypeVar("Answer")
OnProgress: TypeAlias = "Callable[[pb.ArtifactProgress], None]"

CompileCall: TypeAlias = "grpc.aio.UnaryUnaryCall[pb.CompileRequest, pb.CompileResponse]"

MAX_MESSAGE_BYTES = 64 * 2**20
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
                # A server that stops answers what arrives in that moment with CANCELLED.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ]
}
_OPTIONS: Sequence[tuple[str, str | int]] = (
    ("grpc.enable_retries", 1),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
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

    Raises:
        LazyfxError: A certificate cannot be read, or a token would travel in the clear.
    """

    def __init__(self, address: str, *, timeout: float, access: Access) -> None:
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
        """
        return await self._unary(call)

    async def compile_batch(
        self, requests: AsyncIterator[pb.CompileBatchRequest]
    ) -> AsyncIterator[pb.CompileBatchResponse]:
        """Ask for many compiles; answers come as they finish.

        Raises:
            ServiceError: The stream as a whole failed.
        """
        call = self._stub.CompileBatch(requests, metadata=self._metadata)
        try:
            async for response in call:
                yield response
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
            ServiceError: One of its kinds, by the status.
        """
        data = bytearray()
        try:
            trailer = await self._download(request, data, timeout, on_progress)
        except UnavailableError:
            if not data:
                raise
            resumed = pb.GetArtifactRequest()
            resumed.CopyFrom(request)
            resumed.offset = len(data)
            trailer = await self._download(resumed, data, timeout, on_progress)
        if hashlib.sha256(data).digest() != trailer.digest.sha256:
            raise ArtifactError(
                f"the {pb.ArtifactKind.Name(request.kind)} that arrived does not have the "
                "digest that the server announced; try again"
            )
        return bytes(data), trailer

    async def _download(
        self,
        request: pb.GetArtifactRequest,
        data: bytearray,
        timeout: float | None,
        on_progress: OnProgress | None,
    ) -> pb.ArtifactTrailer:
        trailer: pb.ArtifactTrailer | None = None
        try:
            async for part in self._stub.GetArtifact(
                request, timeout=timeout or self.timeout, metadata=self._metadata
            ):
                if part.HasField("progress") and on_progress is not None:
                    on_progress(part.progress)
                elif part.HasField("chunk"):
                    if part.chunk.offset != len(data):
                        raise ArtifactError(
                            f"a chunk at {part.chunk.offset} came where {len(data)} was due"
                        )
                    data += part.chunk.data
                elif part.HasField("trailer"):
                    trailer = part.trailer
        except grpc.aio.AioRpcError as error:
            raise status.to_error(error) from error
        if trailer is None:
            raise ArtifactError("the artifact's stream ended without a digest")
        return trailer

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
            return await self._unary(self._stub.UploadBlobs(chunks, metadata=self._metadata))

        await upload(blobs, find, send, on_progress)

    async def passes(self) -> pb.ListPassesResponse:
        """The passes that the server runs."""
        call = self._stub.ListPasses(
            pb.ListPassesRequest(), timeout=self.timeout, metadata=self._metadata
        )
        return await self._unary(call)

    async def server_info(self) -> pb.GetServerInfoResponse:
        """Versions, devices, limits."""
        call = self._stub.GetServerInfo(
            pb.GetServerInfoRequest(), timeout=self.timeout, metadata=self._metadata
        )
        return await self._unary(call)

    async def stats(self) -> pb.GetStatsResponse:
        """The server's ledger."""
        return await self._unary(
            self._stub.GetStats(pb.GetStatsRequest(), timeout=self.timeout, metadata=self._metadata)
        )

    @staticmethod
    async def _unary(call: Awaitable[Answer]) -> Answer:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise status.to_error(error) from error


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
