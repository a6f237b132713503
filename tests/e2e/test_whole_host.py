"""Replicas on one machine: one Valkey, one store folder, and clients that balance over them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import store_servers
import torch
from harness import DCE, connected, graph_of
from servers import RunningServer, start_server
from torch import nn

import lazyfx
from lazyfx.v1 import compiler_pb2 as pb

pytestmark = pytest.mark.long

X = torch.ones(2)


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    server = store_servers.valkey()
    yield f"redis://127.0.0.1:{server.port}/0"
    server.kill()


@pytest.fixture
def host(launch: Any, valkey: str, tmp_path: Path) -> list[RunningServer]:
    """Two replicas, started as the files in deploy/ do: all keys are in the folder."""
    flags = ("--workers", "1", "--store", f"{valkey}?prefix={tmp_path.name}")
    return [launch(*flags, store=tmp_path / "store") for _ in range(2)]


def misses(server: RunningServer) -> int:
    with connected(server.address) as stub:
        return int(stub.GetStats(pb.GetStatsRequest(), timeout=60).misses)


class Folding(nn.Module):
    """Folds into a constant of 1.6 MB: an entry that is too large for Valkey."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(400_000.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[0] + torch.sin(self.table)


def test_replicas_find_each_others_results_small_and_large(host: list[RunningServer]) -> None:
    model = Folding()
    program = torch.export.export(model, (X,))
    with lazyfx.connect(host[0].address) as client:
        assert torch.equal(client.compile(graph_of(2), [DCE])(X), X * 4)
        client.compile(program, ["constant_fold"])(X)
    with lazyfx.connect(host[1].address) as client:
        small, large = (
            client.compile(graph_of(2), [DCE]),
            client.compile(program, ["constant_fold"]),
        )
        assert (small.cache.status, large.cache.status) == ("hit", "hit")
        assert torch.equal(small(X), X * 4)
        assert torch.allclose(large(X), model(X))
    assert misses(host[1]) == 0


def test_a_client_goes_on_while_the_replicas_are_restarted_in_turn(
    host: list[RunningServer], valkey: str, launch: Any, tmp_path: Path
) -> None:
    flags = ("--workers", "1", "--store", f"{valkey}?prefix={tmp_path.name}")
    with lazyfx.connect(",".join(server.address for server in host)) as client:
        kept = client.compile(graph_of(3), [DCE])
        for server in host:
            os.kill(server.pid, signal.SIGTERM)
            for _ in range(10):
                assert client.compile(graph_of(3), [DCE]).cache.status == "hit"
            assert server.process.wait(60) == 0
            launch(*flags, "--listen", server.address, store=tmp_path / "store")
            assert client.compile(graph_of(3), [DCE]).cache.status == "hit"
        assert torch.equal(kept(X), X * 6)


def test_a_second_server_without_a_shared_store_is_refused(launch: Any, tmp_path: Path) -> None:
    first = launch("--workers", "1", "--drain-seconds", "0", store=tmp_path / "store")
    with pytest.raises(RuntimeError, match="did not start") as refused:
        start_server(tmp_path / "store", "--workers", "1", "--drain-seconds", "0")
    message = str(refused.value)
    assert f"another server (process {first.pid}) uses this folder" in message
    assert "--store redis://HOST:PORT/DB" in message
    os.kill(first.pid, signal.SIGKILL)
    first.process.wait(60)
    launch("--workers", "1", store=tmp_path / "store")


def test_a_successor_waits_until_its_predecessor_has_drained(launch: Any, tmp_path: Path) -> None:
    first = launch("--workers", "1", store=tmp_path / "store")
    with lazyfx.connect(first.address) as client:
        client.compile(graph_of(4), [DCE])
    os.kill(first.pid, signal.SIGTERM)
    second = launch("--workers", "1", store=tmp_path / "store")
    with lazyfx.connect(second.address) as client:
        assert client.compile(graph_of(4), [DCE]).cache.status == "hit"
