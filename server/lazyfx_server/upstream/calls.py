"""The calls to the upstream server, over gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from lazyfx.errors import ProtocolError, TimedOutError, UnavailableError
from lazyfx.shared import grpc_status
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.forwarding.upstream_calls import DeadlinePassedError
from lazyfx_server.upstream.route import VIA, current_route
from lazyfx_server.upstream.upstream_tls import UpstreamTls

_log = logging.getLogger(__name__)

_SERVICE: Final = "/lazyfx.v1.GraphCompiler/"
_HEALTH: Final = "/grpc.health.v1.Health/Check"
_MAX_ANSWER_BYTES: Final = 16 * 2**20
_MAX_SENT_BYTES: Final = 64 * 2**20
_INFO_SECONDS: Final = 5.0
# Calls that are longer are ended when a certificate is renewed.
_LONGEST_CALL_SECONDS: Final = 600.0
_OPTIONS: Final[Sequence[tuple[str, int]]] = (
    # Whoever asked decides what follows a failure: this server does the work.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
    ("grpc.max_send_message_length", _MAX_SENT_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 40_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
)

Answer = TypeVar("Answer", bound=Message)
OnBytes = Callable[[int, int], None]
"""Called with bytes that were sent, and bytes that were received."""


@dataclass(frozen=True)
class UpstreamAddress:
    """Where the upstream is, and how it is reached.

    Attributes:
        address: As `addresses.read_address` returns it.
        tls: How the connection is encrypted; None for plaintext.
    """

    address: str
    tls: UpstreamTls | None = None


class GrpcUpstreamCalls:
    """Calls under the identity of the caller that is being served; see `UpstreamCalls`.

    Args:
        where: Where the upstream is.
        own_id: What identifies this server in the way of a request.
        own_authorization: This server's own authorization header; None to show the caller's.
        shows_callers: Whether to show the caller's, which this server has checked.
        on_bytes: Counts the bytes of messages.

    Raises:
        OSError: A file of its TLS cannot be used.
    """

    def __init__(
        self,
        where: UpstreamAddress,
        *,
        own_id: str,
        own_authorization: Callable[[], str] | None,
        shows_callers: bool,
        on_bytes: OnBytes,
    ) -> None:
        self.address = where.address
        self.forwards_callers = own_authorization is None and shows_callers
        self._own_id = own_id
        self._own_authorization = own_authorization
        self._on_bytes = on_bytes
        self._where = where
        self._seen = where.tls and where.tls.fingerprint()
        self._channel = _open_channel(where)
        self._ending: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """See `UpstreamCalls.close`."""
        await self._channel.close()
        await asyncio.gather(*self._ending)

    def _follow_files(self) -> None:
        """Connect again if a certificate has been renewed. Calls under way end as they began."""
        seen = self._where.tls and self._where.tls.fingerprint()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            renewed = _open_channel(self._where)
        except OSError as error:
            _log.error("keeping the previous certificates for the upstream: %s", error)
            return
        previous, self._channel = self._channel, renewed
        ending = asyncio.ensure_future(previous.close(_LONGEST_CALL_SECONDS))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        _log.info("the certificates for the upstream changed")

    async def is_serving(self, seconds: float) -> bool:
        """Whether it answers a health check within that time, and serves."""
        self._follow_files()
        check: Any = self._channel.unary_unary(
            _HEALTH,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = await check(health_pb2.HealthCheckRequest(), timeout=seconds)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def compile(self, request: pb.CompileRequest) -> pb.CompileResponse:
        """See `UpstreamCalls.compile`."""
        return await self._ask("Compile", request, pb.CompileResponse)

    async def find_missing(
        self, digests: Sequence[graph_pb2.Digest]
    ) -> pb.FindMissingBlobsResponse:
        """See `UpstreamCalls.find_missing`."""
        request = pb.FindMissingBlobsRequest(digests=digests)
        return await self._ask("FindMissingBlobs", request, pb.FindMissingBlobsResponse)

    async def server_info(self) -> pb.GetServerInfoResponse:
        """See `UpstreamCalls.server_info`."""
        request = pb.GetServerInfoRequest()
        try:
            return await self._ask(
                "GetServerInfo", request, pb.GetServerInfoResponse, _INFO_SECONDS
            )
        except DeadlinePassedError as error:
            if self._seconds() == 0:
                raise
            raise UnavailableError(error.reason, code="UNAVAILABLE") from error

    async def artifact(
        self, request: pb.GetArtifactRequest
    ) -> AsyncIterator[pb.GetArtifactResponse]:
        """See `UpstreamCalls.artifact`."""
        data = request.SerializeToString()
        method: Any = self._channel.unary_stream(f"{_SERVICE}GetArtifact")
        call = method(data, timeout=self._seconds(), metadata=self._metadata())
        self._on_bytes(len(data), 0)
        try:
            with _errors():
                async for part in call:
                    self._on_bytes(0, len(part))
                    yield _parsed(pb.GetArtifactResponse, part)
        finally:
            call.cancel()

    async def upload(self, chunks: Iterable[pb.UploadBlobsRequest]) -> None:
        """See `UpstreamCalls.upload`."""

        async def requests() -> AsyncIterator[bytes]:
            for chunk in chunks:
                data = chunk.SerializeToString()
                self._on_bytes(len(data), 0)
                yield data

        method: Any = self._channel.stream_unary(f"{_SERVICE}UploadBlobs")
        with _errors():
            data = await method(requests(), timeout=self._seconds(), metadata=self._metadata())
        self._on_bytes(0, len(data))
        _parsed(pb.UploadBlobsResponse, data)

    async def _ask(
        self, name: str, request: Message, kind: type[Answer], most_seconds: float | None = None
    ) -> Answer:
        data = request.SerializeToString()
        method: Any = self._channel.unary_unary(f"{_SERVICE}{name}")
        seconds = self._seconds()
        if most_seconds is not None:
            seconds = most_seconds if seconds is None else min(seconds, most_seconds)
        self._on_bytes(len(data), 0)
        with _errors():
            answer = await method(data, timeout=seconds, metadata=self._metadata())
        self._on_bytes(0, len(answer))
        return _parsed(kind, answer)

    def _seconds(self) -> float | None:
        return current_route().seconds_left()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """Whose request it is, and which way it came.

        A header that this server has not checked is not passed on.
        """
        route = current_route()
        via = (VIA, ",".join((*route.via, self._own_id)))
        if self._own_authorization is not None:
            return ("authorization", self._own_authorization()), via
        if self.forwards_callers and route.authorization:
            return ("authorization", route.authorization), via
        return (via,)


def _open_channel(where: UpstreamAddress) -> grpc.aio.Channel:
    if where.tls is None:
        return grpc.aio.insecure_channel(where.address, options=_OPTIONS)
    return grpc.aio.secure_channel(where.address, where.tls.credentials(), options=_OPTIONS)


@contextmanager
def _errors() -> Iterator[None]:
    """Converts gRPC's errors into `lazyfx.errors`."""
    try:
        yield
    except grpc.RpcError as error:
        found = grpc_status.to_error(error)
        if isinstance(found, TimedOutError) and not grpc_status.is_from_server(error):
            found = DeadlinePassedError(found.reason, code=found.code)
        raise found from None


def _parsed(kind: type[Answer], data: bytes) -> Answer:
    try:
        return kind.FromString(data)
    except (ProtobufError, UnicodeDecodeError, RecursionError):
        raise ProtocolError("the upstream's answer cannot be parsed") from None
