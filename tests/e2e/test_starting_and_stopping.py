"""A starting server leaves no caller hanging, and a stopping one cuts none off."""

from __future__ import annotations

import asyncio
import collections
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import nursery
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import (
    DCE,
    PATIENCE,
    compile_request,
    connected,
    graph_of,
    http_status,
    refused,
    wait_until,
)

import lazyfx
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub

_LISTENING = re.compile(r"listening on (\S+), metrics on (\S+); not serving yet")
# Imported by the fork server, before there are workers.
_SLOW_MODULE = """
import os, time
while not os.path.exists({gate!r}):
    time.sleep(0.05)
"""


class StartingServer:
    """A server that does not become ready before the test lets it."""

    def __init__(self, folder: Path) -> None:
        self._gate = folder / "gate"
        (folder / "slow_to_import.py").write_text(_SLOW_MODULE.format(gate=str(self._gate)))
        self.process = nursery.start(
            "server",
            [
                "-m", "lazyfx_server", "--listen", "127.0.0.1:0",
                "--metrics-port", "0", "--workers", "1", "--store-path", str(folder / "store"),
                "--operator-modules", "slow_to_import",
            ],
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdout=None,
        )  # fmt: skip
        self.log: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        wait_until(lambda: any(map(_LISTENING.search, self.log)), "the server listening")
        found = next(filter(None, map(_LISTENING.search, self.log)))
        self.address, self.metrics_url = found.groups()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def let_start(self) -> None:
        self._gate.touch()


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[StartingServer]:
    server = StartingServer(tmp_path)
    yield server
    server.let_start()
    server.process.kill()
    server.process.wait(10)


def test_a_server_that_starts_says_so_at_once(starting):
    request = compile_request(graph_of(1.0), DCE)
    assert "starting lazyfx" in starting.log[0]
    with grpc.insecure_channel(starting.address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert http_status(starting.metrics_url.replace("/metrics", "/readyz")) == 503
    assert http_status(starting.metrics_url.replace("/metrics", "/healthz")) == 200
    with connected(starting.address) as stub:
        refusal = refused(lambda: stub.Compile(request))
        assert refusal.code == "UNAVAILABLE"
        assert "starting" in refusal.message
        assert refusal.retry_after
        starting.let_start()
        wait_until(lambda: any("serving on" in line for line in starting.log), "being ready")
        assert stub.Compile(request, timeout=PATIENCE).module_key


def test_a_client_waits_for_a_server_that_starts(starting):
    with lazyfx.connect(starting.address, timeout=PATIENCE) as client:
        letting = threading.Timer(2.0, starting.let_start)
        letting.start()
        assert client.compile(graph_of(2.0), [DCE]).cache.status == "miss"


def test_a_server_can_be_stopped_while_it_starts(starting):
    starting.process.send_signal(signal.SIGTERM)
    assert starting.process.wait(PATIENCE) == 0
    assert not [line for line in starting.log if "Traceback" in line]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _hammer(address: str, done: asyncio.Event) -> collections.Counter[str]:
    """Call without any retries until `done` is set; count the codes."""
    codes: collections.Counter[str] = collections.Counter()
    request = compile_request(graph_of(1.0), DCE)
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]

    async def call_on(stub: GraphCompilerStub) -> None:
        while not done.is_set():
            try:
                await stub.Compile(request, timeout=PATIENCE)
                await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=PATIENCE)
                codes["OK"] += 2
            except grpc.aio.AioRpcError as error:
                outcome = error.code().name
                if outcome != "UNAVAILABLE":
                    outcome += f": {error.details()}"
                codes[outcome] += 1
                await asyncio.sleep(0.002)

    async def connect() -> None:
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            stub = GraphCompilerStub(channel)
            await asyncio.gather(*(call_on(stub) for _ in range(4)))

    await asyncio.gather(*(connect() for _ in range(4)))
    return codes


def test_a_drain_cuts_no_call(launch):
    """Over several drains under load, callers see answers and UNAVAILABLE, and nothing else."""
    address = f"127.0.0.1:{_free_port()}"

    async def stop_under_load() -> collections.Counter[str]:
        done = asyncio.Event()
        hammering = asyncio.ensure_future(_hammer(address, done))
        await asyncio.sleep(1.0)
        status = await asyncio.to_thread(server.stop)
        assert status == 0
        await asyncio.sleep(0.2)
        done.set()
        return await hammering

    for _ in range(3):
        server = launch("--workers", "1", "--listen", address)
        codes = asyncio.run(stop_under_load())
        assert codes["OK"]
        assert set(codes) == {"OK", "UNAVAILABLE"}, codes
        assert not [line for line in server.log if "Traceback" in line]
