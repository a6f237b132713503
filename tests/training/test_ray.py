"""Servers whose jobs run on a Ray cluster: a real head and real nodes on this machine (`make ray`)."""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from harness import graph_of, metrics, total
from ray_clusters import RayCluster
from servers import start_server
from training.loops import Net, assert_same, batches, train
from training.test_waiting import captured

import lazyfx
from lazyfx.shared.native.machine import likely_vector_isa
from lazyfx.v1 import compiler_pb2 as pb

if TYPE_CHECKING:
    from servers import RunningServer

    from lazyfx.backend.fallback_report import KernelCounts

PATIENCE = 150.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """One node, with all that this machine has."""
    made = RayCluster()
    try:
        made.start_head()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def server(
    cluster: RayCluster, needs_gxx: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server that has no compiler: its PATH is an empty folder."""
    running = start_server(
        tmp_path_factory.mktemp("store"), "--native", "--workers", "1",
        "--executor", cluster.address, "--executor-start-seconds", "200",
        environment={**cluster.environment, "PATH": str(tmp_path_factory.mktemp("path"))},
    )  # fmt: skip
    yield running
    running.stop()


def wait_for(condition: Callable[[], object]) -> None:
    """Wait for nodes, which take longer to start than anything else."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.1)


def nodes(server: RunningServer, state: str) -> float:
    return total(metrics(server.metrics_url), "lazyfx_engine_nodes", state=state)


def readiness(server: RunningServer) -> str:
    url = server.metrics_url.replace("/metrics", "/readyz")
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.long
def test_a_server_without_a_compiler_serves_native_artifacts(server: RunningServer) -> None:
    model = Net(width=23)
    options = {"address": server.address, "on_error": "raise"}
    remote = train(model, batches(), torch.compile(model, backend="lazyfx", options=options))
    assert lazyfx.backend_report().graphs[0].outcome == "remote"
    assert_same(remote, train(Net(width=23), batches()))
    with lazyfx.connect(server.address) as client:
        info = client.server_info()
    assert "seccomp" in info.sandbox.layers
    assert "seccomp" in info.native_status.sandbox.layers


@pytest.mark.slow
def test_a_request_goes_to_a_node_whose_artifacts_run_there(
    server: RunningServer, cluster: RayCluster
) -> None:
    if not likely_vector_isa():
        pytest.skip("needs a CPU with vector instructions")
    graph, request = captured(width=24)
    older = pb.NativeRequest()
    older.CopyFrom(request)
    older.target.vector_isa = ""  # as of a CPU without vector instructions
    with lazyfx.connect(server.address) as client:
        module = client.compile(graph)
        with pytest.raises(
            lazyfx.errors.PreconditionError, match=f"{likely_vector_isa()} on the server"
        ):
            module.native(older, timeout=PATIENCE)
        cluster.start_node(ATEN_CPU_CAPABILITY="default")
        wait_for(lambda: nodes(server, "used") == 2)
        for wanted in (request, older):
            bundle = pb.NativeBundle.FromString(module.native(wanted, timeout=PATIENCE))
            assert bundle.target.vector_isa == wanted.target.vector_isa
        older.target.vector_isa = "neon"
        with pytest.raises(
            lazyfx.errors.PreconditionError, match=r"2 kinds .*no vector instructions"
        ):
            module.native(older, timeout=PATIENCE)


@pytest.mark.slow
def test_a_node_with_another_version_is_not_used(
    server: RunningServer, cluster: RayCluster, tmp_path: Path
) -> None:
    pretended = tmp_path / "lazyfx-9.9.dist-info"
    pretended.mkdir()
    pretended.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: lazyfx\nVersion: 9.9\n")
    before = nodes(server, "used")
    cluster.start_node(PYTHONPATH=str(tmp_path))
    wait_for(lambda: nodes(server, "refused") == 1)
    assert nodes(server, "used") == before
    assert any("lazyfx 9.9" in line for line in server.log)


def kernels(server: RunningServer, epsilon: float) -> KernelCounts:
    """Of a step that is new to the server."""
    torch._dynamo.reset()
    model = Net(width=25)
    model.norm.eps = epsilon
    options = {"address": server.address, "on_error": "raise"}
    train(model, batches(), torch.compile(model, backend="lazyfx", options=options))
    found = lazyfx.backend_report().graphs[-1].kernels
    assert found is not None
    return found


@pytest.mark.slow
def test_hits_go_on_when_the_head_dies_and_jobs_when_it_is_back(
    server: RunningServer,
    cluster: RayCluster,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    falls_back = start_server(
        tmp_path, "--workers", "1", "--executor", cluster.address, "--executor-fallback",
        "--executor-start-seconds", "200", environment=cluster.environment,
    )  # fmt: skip
    with lazyfx.connect(server.address) as client, lazyfx.connect(falls_back.address) as other:
        client.compile(graph_of(1.0))
        assert other.compile(graph_of(1.0)).cache.status == "miss"
        assert kernels(server, 1e-5).known == 0
        cluster.kill_all()
        assert other.compile(graph_of(2.0), timeout=60).cache.status == "miss"
        assert any("jobs run on this machine" in line for line in falls_back.log)
        falls_back.stop()
        # The client retries, as the server asks, until its timeout.
        with pytest.raises(lazyfx.errors.UnavailableError):
            client.compile(graph_of(2.0), timeout=60)
        assert client.compile(graph_of(1.0)).cache.status == "hit"
        assert "no jobs run" in readiness(server)
        assert total(metrics(server.metrics_url), "lazyfx_engine_connected") == 0
        cluster.start_head()
        started = time.monotonic()

        def compiles() -> bool:
            with contextlib.suppress(lazyfx.errors.UnavailableError):
                client.compile(graph_of(3.0), timeout=10)
                return True
            return False

        wait_for(compiles)
        record_property("seconds until jobs ran again", time.monotonic() - started)
        assert "no jobs run" not in readiness(server)
    # These nodes are new, and the kernels are those that the first one gave the server.
    again = kernels(server, 1e-4)
    assert again.known > again.compiled > 0
