"""A tiny HTTP server for scrapers and probes: /metrics, /healthz, /readyz.

Answers one GET or HEAD per connection and closes it. The size of the request, its duration and the
number of connections are bounded. When there are too many, the oldest connection is closed: it must
be a slow one, since an answer takes milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType
from typing import Final, final

MAX_REQUEST_BYTES: Final = 8192
MAX_CONNECTIONS: Final = 128

Metrics = Callable[[str], tuple[str, bytes]]
"""Maps the value of an Accept header to content type and body. Called in a thread."""

Probe = Callable[[], bool]

_TEXT: Final = "text/plain; charset=utf-8"


@final
class TelemetryServer:
    """Serves metrics and probes on a separate port.

    Args:
        metrics: Renders /metrics.
        healthy: Answers /healthz: False means that the process should be replaced.
        ready: Answers /readyz: False means that no requests should be sent here.
        host: Address to listen on.
        port: Port to listen on; 0 picks a free one.
        timeout: Seconds that a connection may last.
        notes: Text that /readyz appends when the server is ready.
        settle: Called before each rendering: counts what has not been counted yet.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        healthy: Probe,
        ready: Probe,
        host: str = "127.0.0.1",
        port: int = 0,
        timeout: float = 10.0,
        notes: Callable[[], str] = str,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._metrics = metrics
        self._probes = {"/healthz": healthy, "/readyz": ready}
        self._host = host
        self._port = port
        self._timeout = timeout
        self._notes = notes
        self._settle = settle
        self._server: asyncio.Server | None = None
        # Oldest first.
        self._connections: dict[asyncio.Task[None], None] = {}
        self._rendering = asyncio.Lock()

    @property
    def port(self) -> int:
        """The port it listens on. Only valid while started."""
        assert self._server is not None, "not started"
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Start listening.

        Raises:
            OSError: The address cannot be listened on.
        """
        self._server = await asyncio.start_server(
            self._connected, self._host, self._port, limit=MAX_REQUEST_BYTES
        )

    async def stop(self) -> None:
        """Stop listening and close open connections. May be called twice."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await server.wait_closed()

    async def __aenter__(self) -> TelemetryServer:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio runs this as a task"
        if len(self._connections) >= MAX_CONNECTIONS:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.cancel()
        self._connections[task] = None
        try:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(self._talk(reader, writer), self._timeout)
        finally:
            self._connections.pop(task, None)
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        except asyncio.LimitOverrunError:
            answer = _answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            answer = await self._respond(request.decode("latin-1"))
        writer.write(answer)
        await writer.drain()
        # Closing with unread input would reset the connection before the answer is read.
        writer.write_eof()
        while await reader.read(MAX_REQUEST_BYTES):
            pass

    async def _respond(self, request: str) -> bytes:
        lines = request.split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _answer(HTTPStatus.BAD_REQUEST)
        method, target, _ = words
        path = target.partition("?")[0]
        if path != "/metrics" and path not in self._probes:
            return _answer(HTTPStatus.NOT_FOUND, with_body=method != "HEAD")
        if method not in ("GET", "HEAD"):
            return _answer(HTTPStatus.METHOD_NOT_ALLOWED, extra="Allow: GET, HEAD\r\n")
        with_body = method == "GET"
        if path != "/metrics":
            good = self._probes[path]()
            status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
            notes = self._notes() if good and path == "/readyz" else ""
            body = f"{status.phrase}\n{notes}\n".encode() if notes else None
            return _answer(status, body=body, with_body=with_body)
        # In a thread, so that rendering hundreds of series delays no request; one at a time, so
        # that many scrapers do not take all threads.
        async with self._rendering:
            self._settle()
            content_type, body = await asyncio.to_thread(
                self._metrics, _header(lines[1:], "accept")
            )
        return _answer(HTTPStatus.OK, content_type, body, with_body=with_body)


def _header(lines: list[str], wanted: str) -> str:
    values = [
        value.strip()
        for name, _, value in (line.partition(":") for line in lines)
        if name.strip().lower() == wanted
    ]
    return ",".join(values)


def _answer(
    status: HTTPStatus,
    content_type: str = _TEXT,
    body: bytes | None = None,
    *,
    with_body: bool = True,
    extra: str = "",
) -> bytes:
    content = f"{status.phrase}\n".encode("ascii") if body is None else body
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {content_type}\r\n"
        f"Content-Length: {len(content)}\r\n"
        f"{extra}"
        "Cache-Control: no-store\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (content if with_body else b"")
