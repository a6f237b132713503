"""The gRPC server: its options and services, its port, and how its connections end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from lazyfx.v1.compiler_pb2_grpc import add_GraphCompilerServicer_to_server
from lazyfx_server.rpc.calls_in_progress import CallsInProgress
from lazyfx_server.rpc.interceptors import CallInterceptor
from lazyfx_server.rpc.service import GraphCompilerService
from lazyfx_server.rpc.transport.tcp_connections import drop_connections, refuse_connections
from lazyfx_server.rpc.transport.tls import TlsFiles, server_credentials

SERVICE_NAME: Final = "lazyfx.v1.GraphCompiler"
KEEPALIVE: Final[Sequence[tuple[str, int]]] = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Two servers on one port would each answer half of the calls from separate caches.
    ("grpc.so_reuseport", 0),
)
# Responses are the server's own; clients accept less.
_MAX_SENT_BYTES: Final = 64 * 2**20
# Between the last response, which may still be in flight, and closing the connections.
_FLUSH_SECONDS: Final = 0.2
# How long handlers may take to notice that their connections are closed.
_STOP_SECONDS: Final = 1.0


class GrpcServer:
    """Binds a port, admits calls once opened, and stops.

    Args:
        service: The lazyfx service.
        interceptor: Intercepts them.
        calls: Refused before `open` and after `refuse_calls`.
        max_message_bytes: Maximum size of a request.
        max_streams: Maximum concurrent calls per connection.
        max_metadata_bytes: Maximum size of a call's metadata.
        with_reflection: Enable server reflection.

    Attributes:
        port: The port; 0 before `bind`.
    """

    def __init__(
        self,
        service: GraphCompilerService,
        interceptor: CallInterceptor,
        calls: CallsInProgress,
        *,
        max_message_bytes: int,
        max_streams: int,
        max_metadata_bytes: int,
        with_reflection: bool,
    ) -> None:
        self.port = 0
        self._started = False
        self._calls = calls
        self._health = HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[interceptor],
            options=[
                *KEEPALIVE,
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", _MAX_SENT_BYTES),
                ("grpc.max_concurrent_streams", max_streams),
                ("grpc.max_metadata_size", max_metadata_bytes),
                ("grpc.absolute_max_metadata_size", max_metadata_bytes),
            ],
        )
        services: Any = _FoundByName(self._server)
        add_GraphCompilerServicer_to_server(service, services)
        # Registered, so that a probe does not wait behind the calls that have yet to be accepted.
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if with_reflection:
            names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
            reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), services)

    def bind(self, address: str, tls: TlsFiles | None) -> None:
        """Bind the port, with TLS if there are files for it.

        Raises:
            OSError: The address cannot be bound, or a file cannot be read.
        """
        try:
            if tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, server_credentials(tls))
        except RuntimeError as error:
            raise OSError(
                f"--listen {address}: cannot listen there; is another server running? ({error})"
            ) from error

    async def start(self) -> None:
        """Start listening; calls are refused, and health checks return NOT_SERVING."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        self._started = True

    async def open(self) -> None:
        """Admit calls."""
        self._calls.open()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def refuse_calls(self) -> None:
        """Refuse new calls; running ones continue."""
        await self._health.enter_graceful_shutdown()
        self._calls.close()

    async def stop(self) -> None:
        """Close the connections, and cancel calls that are still running."""
        if not self._started:
            return
        refuse_connections(self.port)
        await asyncio.sleep(_FLUSH_SECONDS)
        drop_connections(self.port)
        await self._server.stop(_STOP_SECONDS)

    async def _set_health(self, status: int) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)


class _FoundByName:
    """Adds services to a server; their methods are found by name, in Python.

    Generated code also registers each method with gRPC's core. grpc.aio then has a future for the
    next call of each method, and for each call that arrives it adds a callback to every one of them
    and removes it again: a tenth of the CPU time of a hit.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Let the server find the methods of these."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Register nothing."""
