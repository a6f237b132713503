"""One name for several servers (`dns:///`): gRPC resolves it, and spreads calls by their keys."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from harness import wait_until

from lazyfx.calls.channel import REPLICA_KEY, methods_of, open_blocking_channel
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1.compiler_pb2_grpc import add_GraphCompilerServicer_to_server as add_to_server

SERVICE = "lazyfx.v1.GraphCompiler"
HOSTS = ("127.0.0.1", "127.0.0.2")


class Named:
    """A server that only says on which address it listens."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.server = grpc.server(ThreadPoolExecutor(4))
        add_to_server(self, self.server)  # type: ignore[arg-type]
        self.health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        self.set_serving(True)
        self.port = self.server.add_insecure_port(f"{host}:{port}")
        self.server.start()

    def set_serving(self, is_serving: bool) -> None:
        state = health_pb2.HealthCheckResponse
        self.health.set(SERVICE, state.SERVING if is_serving else state.NOT_SERVING)

    def __getattr__(self, method: str) -> Any:
        def handle(request: object, context: grpc.ServicerContext) -> object:
            assert method == "ListPasses"
            return pb.ListPassesResponse(passes=[pb.PassDescription(name=self.host)])

        return handle


def _answer(query: bytes, addresses: Sequence[str]) -> bytes:
    """The answer of a name server: every name has these addresses."""
    end = query.index(b"\0", 12) + 5
    question, kind = query[12:end], struct.unpack(">H", query[end - 4 : end - 2])[0]
    hosts = addresses if kind == 1 else ()
    records = [
        b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(host) for host in hosts
    ]
    header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(records), 0, 0)
    return header + question + b"".join(records)


@dataclass
class NameServer:
    """Gives every name the same addresses, which may change."""

    port: int
    hosts: Sequence[str] = HOSTS


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(0.2)
        ending = threading.Event()
        names = NameServer(listener.getsockname()[1])

        def serve() -> None:
            while not ending.is_set():
                try:
                    query, client = listener.recvfrom(512)
                except TimeoutError:
                    continue
                listener.sendto(_answer(query, names.hosts), client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield names
        ending.set()
        thread.join()


@pytest.fixture
def servers() -> Iterator[list[Named]]:
    first = Named(HOSTS[0], 0)
    found = [first, Named(HOSTS[1], first.port)]
    yield found
    for one in found:
        one.server.stop(None).wait()


def test_a_key_selects_one_server_and_one_that_drains_gets_no_calls(
    name_server: NameServer, servers: list[Named]
) -> None:
    address = f"dns://127.0.0.1:{name_server.port}/lazyfx.test:{servers[0].port}"
    with open_blocking_channel(address, None, is_replica=True) as channel:
        method = methods_of(channel)["ListPasses"]

        def called(key: str) -> str:
            data = method(b"", timeout=30, metadata=((REPLICA_KEY, key),), wait_for_ready=True)
            return str(pb.ListPassesResponse.FromString(data).passes[0].name)

        places = {str(i): called(str(i)) for i in range(64)}
        spread = Counter(places.values())
        assert set(spread) == set(HOSTS)
        assert min(spread.values()) >= 8
        assert {key: called(key) for key in places} == places
        servers[0].set_serving(False)
        wait_until(
            lambda: {called(key) for key in places} == {HOSTS[1]}, "the draining server is left out"
        )
        servers[0].set_serving(True)
        wait_until(
            lambda: {key: called(key) for key in places} == places, "each key has its server again"
        )


def test_a_name_whose_addresses_have_changed_is_resolved_again_soon(
    name_server: NameServer, servers: list[Named]
) -> None:
    """As when all pods of a service are replaced; gRPC's default is to wait for 30 s."""
    port = servers[0].port
    address = f"dns://127.0.0.1:{name_server.port}/lazyfx.test:{port}"
    with open_blocking_channel(address, None, is_replica=True) as channel:
        method = methods_of(channel)["ListPasses"]

        def called() -> str:
            data = method(b"", timeout=15, metadata=((REPLICA_KEY, "x"),), wait_for_ready=True)
            return str(pb.ListPassesResponse.FromString(data).passes[0].name)

        assert called() in HOSTS
        other = Named("127.0.0.3", port)
        name_server.hosts = ["127.0.0.3"]
        for old in servers:
            old.server.stop(None).wait()
        assert called() == "127.0.0.3"
        other.server.stop(None).wait()
