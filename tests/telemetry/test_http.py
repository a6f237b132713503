"""The metrics port, spoken to over a socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from lazyfx_server.telemetry.http import MAX_CONNECTIONS, TelemetryServer
from lazyfx_server.telemetry.prometheus import exposition


class Server:
    def __init__(self) -> None:
        self.healthy = True
        self.ready = True
        registry = CollectorRegistry()
        self.counter = Counter("things", "Things", registry=registry)
        self.http = TelemetryServer(
            exposition(registry), healthy=lambda: self.healthy, ready=lambda: self.ready, timeout=1
        )

    async def send(self, data: bytes, *, end: bool = False) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http.port)
        writer.write(data)
        if end:
            writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return answer

    async def get(
        self, path: str, method: str = "GET", headers: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"
        head, _, body = (await self.send(request.encode())).partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        return int(first.split(" ")[1]), {name.lower(): value for name, value in pairs}, body


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    async with made.http:
        yield made


async def test_metrics_in_the_text_format(server: Server) -> None:
    server.counter.inc(3)
    status, headers, body = await server.get("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert int(headers["content-length"]) == len(body)
    assert b"\nthings_total 3.0\n" in body


async def test_metrics_in_openmetrics_when_asked_for(server: Server) -> None:
    accept = "ACCEPT: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n"
    status, headers, body = await server.get("/metrics?name=x", headers=accept)
    assert status == 200
    assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/nothing"])
async def test_head_has_no_body(server: Server, path: str) -> None:
    status, headers, body = await server.get(path, method="HEAD")
    assert status == (404 if path == "/nothing" else 200)
    assert int(headers["content-length"]) > 0
    assert body == b""


async def test_probes_follow_what_they_ask(server: Server) -> None:
    assert (await server.get("/healthz"))[0] == 200
    assert (await server.get("/readyz"))[0] == 200
    server.ready = False
    assert (await server.get("/healthz"))[0] == 200
    assert (await server.get("/readyz"))[0] == 503
    server.healthy = False
    assert (await server.get("/healthz"))[0] == 503


async def test_other_paths_and_methods(server: Server) -> None:
    assert (await server.get("/"))[0] == 404
    assert (await server.get("/metrics/../etc/passwd"))[0] == 404
    status, headers, _ = await server.get("/metrics", method="POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("garbage", [b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\xff\r\n\r\n"])
async def test_garbage_is_a_bad_request(server: Server, garbage: bytes) -> None:
    assert (await server.send(garbage)).startswith(b"HTTP/1.1 400 ")
    assert (await server.get("/healthz"))[0] == 200


async def test_large_request_is_refused(server: Server) -> None:
    request = b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n"
    assert (await server.send(request)).startswith(b"HTTP/1.1 431 ")


async def test_half_a_request_is_dropped(server: Server) -> None:
    assert await server.send(b"GET /metrics HT", end=True) == b""


async def test_slow_client_is_dropped(server: Server) -> None:
    assert await server.send(b"GET /metrics HT") == b""


async def test_200_slow_connections_keep_nobody_out(server: Server) -> None:
    """The oldest ones make room; a probe is answered while they are there."""
    held = []
    for _ in range(200):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.http.port)
        writer.write(b"GET /metr")
        held.append((reader, writer))
    await asyncio.sleep(0.1)
    answer = await server.send(b"GET /healthz HTTP/1.1\r\n\r\n", end=True)
    assert answer.startswith(b"HTTP/1.1 200 ")
    ended = 0
    for reader, _ in held[: 200 - MAX_CONNECTIONS]:
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        ended += 1
    assert ended == 200 - MAX_CONNECTIONS
    for _, writer in held:
        writer.close()


async def test_stop_ends_what_is_open() -> None:
    made = Server()
    await made.http.start()
    port = made.http.port
    assert port > 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(0.05)
    await made.http.stop()
    await made.http.stop()
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    with pytest.raises(OSError, match=r"[Cc]onnect"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_port_that_is_taken_is_an_error(server: Server) -> None:
    other = TelemetryServer(
        lambda accept: ("", b""), healthy=lambda: True, ready=lambda: True, port=server.http.port
    )
    with pytest.raises(OSError, match="in use"):
        await other.start()
