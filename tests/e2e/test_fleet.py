"""Several servers that share a Redis make each result once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import store_servers
from harness import (
    CSE,
    DCE,
    PATIENCE,
    artifact,
    compile_request,
    connected,
    graph_of,
    metrics,
    total,
)
from servers import RunningServer

from lazyfx.v1 import compiler_pb2 as pb

Start = Callable[..., RunningServer]


@pytest.fixture
def redis_server() -> Iterator[store_servers.Server]:
    server = store_servers.redis()
    yield server
    server.kill()


@pytest.fixture
def replica(
    redis_server: store_servers.Server, tmp_path: Path, launch: Start
) -> Callable[..., RunningServer]:
    """Starts a server of the fleet, with a folder of its own."""
    count = iter(range(100))

    def start(*flags: str) -> RunningServer:
        return launch(
            "--workers", "1",
            "--store", f"redis://127.0.0.1:{redis_server.port}/0",
            "--store-wait-seconds", "5",
            "--tenant-secret", str(tmp_path / "tenants.key"),
            "--signing-key", str(tmp_path / "signing.pem"),
            *flags,
            store=tmp_path / f"store{next(count)}",
        )  # fmt: skip

    return start


def fleet_sum(servers: Sequence[RunningServer], name: str, **labels: str) -> float:
    return sum(total(metrics(server.metrics_url), name, **labels) for server in servers)


def compiles(servers: Sequence[RunningServer]) -> float:
    return fleet_sum(servers, "lazyfx_compile_seconds_count")


def all_at_once(
    servers: Sequence[RunningServer], clients: int, call: Callable[[object], object]
) -> list[object]:
    """What as many clients get, each on a connection of its own, spread over the servers."""
    start = threading.Barrier(clients)

    def one(number: int) -> object:
        with connected(servers[number % len(servers)].address) as stub:
            start.wait()
            return call(stub)

    with ThreadPoolExecutor(clients) as threads:
        return list(threads.map(one, range(clients)))


def test_crowd_of_clients_over_three_servers_costs_one_compile(replica):
    servers = [replica("--store-lease-seconds", "20") for _ in range(3)]
    request = compile_request(graph_of(), CSE, DCE)

    def call(stub):
        response = stub.Compile(request, timeout=PATIENCE)
        return response, artifact(stub, response.module_key, pb.ARTIFACT_KIND_CODE).data

    answers = all_at_once(servers, 60, call)
    assert len({(response.module_key, code) for response, code in answers}) == 1
    assert compiles(servers) == 1
    assert fleet_sum(servers, "lazyfx_artifacts_total", source="rendered") == 1
    assert fleet_sum(servers, "lazyfx_fleet_flights_total", stage="compile", outcome="led") == 1
    assert [response.cache.status for response, _ in answers].count(pb.CACHE_STATUS_MISS) == 1
