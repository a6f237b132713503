"""Servers that share a Redis make a native artifact once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import shared_headers
import store_servers
import torch
from harness import metrics, total, wait_until
from servers import RunningServer, start_server
from training.counting import native_compiles
from training.test_waiting import captured

import lazyfx
from lazyfx.shared.native.native_request import native_request

pytestmark = pytest.mark.long


@pytest.fixture
def redis_server() -> Iterator[store_servers.Server]:
    server = store_servers.redis()
    yield server
    server.kill()


@pytest.fixture
def pair(
    redis_server: store_servers.Server, tmp_path: Path, needs_gxx: None
) -> Iterator[list[RunningServer]]:
    flags = [
        "--native", "--workers", "1",
        "--store", f"redis://127.0.0.1:{redis_server.port}/0",
        "--store-wait-seconds", "5",
        "--store-lease-seconds", "8",
        "--tenant-secret", str(tmp_path / "tenants.key"),
        "--signing-key", str(tmp_path / "signing.pem"),
    ]  # fmt: skip
    # Slow enough for the other server to be told how far the compile is. Confined, it runs no sleep.
    slow = tmp_path / "slow"
    slow.mkdir()
    count = "i=0; while [ $i -lt 500000 ]; do i=$((i+1)); done"
    compiler = {"CXX": str(shared_headers.write_compiler(slow, count))}
    servers = [start_server(tmp_path / f"store{n}", *flags, environment=compiler) for n in range(2)]
    yield servers
    for server in servers:
        server.stop()


def test_one_server_compiles_and_both_answer(pair: list[RunningServer]) -> None:
    graph, request = captured(width=64)
    stages: list[list[str]] = [[], []]

    def ask(number: int) -> tuple[bytes, Any]:
        with lazyfx.connect(pair[number].address) as client:
            module = client.compile(graph)
            data = module.native(
                request,
                timeout=250,
                on_progress=lambda progress: stages[number].append(progress.stage),
            )
            return data, module.key

    with ThreadPoolExecutor() as threads:
        first = threads.submit(ask, 0)
        wait_until(lambda: stages[0], "the compile has begun")
        second = threads.submit(ask, 1)
        assert first.result() == second.result()
    assert sum(map(native_compiles, pair)) == 1
    found = metrics(pair[1].metrics_url)
    assert total(found, "lazyfx_fleet_flights_total", stage="render", outcome="joined") == 1
    # The server that waited told how far the other one was.
    assert {"tracing", "compiling"} & {*stages[1]}, stages

    # For other settings the second one makes an artifact itself, of kernels that the first has made.
    other = native_request({torch.device("cpu")}, None, {"size_asserts": False})
    with lazyfx.connect(pair[1].address) as client:
        assert client.compile(graph).native(other, timeout=250)
    found = metrics(pair[1].metrics_url)
    assert native_compiles(pair[1]) == 1
    assert total(found, "lazyfx_kernels_total", source="found") > 0
    assert total(found, "lazyfx_kernels_total", source="compiled") == 0
