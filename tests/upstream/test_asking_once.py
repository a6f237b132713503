"""A server with an upstream: what it asks, what it answers itself, what it passes on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from harness import CSE, DCE, connected, graph_of, long_graph, metrics, refused, total
from proxy import Proxy, proxied
from servers import RunningServer
from torch import nn

import lazyfx
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.security.signing import read_keys

RANKS = 8
FOLD = lazyfx.pass_spec("constant_fold", max_bytes=8 << 20)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "signing.pem"


@pytest.fixture(scope="module")
def central(launch_for_file: Callable[..., RunningServer], key_file: Path) -> RunningServer:
    return launch_for_file("--workers", "1", "--signing-key", str(key_file))


@pytest.fixture(scope="module")
def network(central: RunningServer) -> Iterator[Proxy]:
    """Counts what passes between the two servers."""
    with proxied(central.address) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def tier(launch_for_file: Callable[..., RunningServer], network: Proxy) -> RunningServer:
    return launch_for_file("--workers", "1", "--upstream", network.address)


@pytest.fixture(scope="module")
def pinned(central: RunningServer, key_file: Path) -> str:
    """The key of the central server, as a user pins it."""
    return read_keys(key_file)[0].public_key().public_bytes_raw().hex()


def asked(tier: RunningServer, what: str, outcome: str = "answered") -> float:
    return total(
        metrics(tier.metrics_url), "lazyfx_upstream_requests_total", what=what, outcome=outcome
    )


def foldable() -> torch.fx.GraphModule:
    """A graph whose weight of 2 MB is folded into a constant."""
    torch.manual_seed(0)
    graph = torch.fx.Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    doubled = graph.call_function(operator.add, (weight, weight))
    graph.output(graph.call_function(operator.matmul, (x, doubled)))
    root = nn.Module()
    root.register_buffer("weight", torch.randn(700, 700))
    return torch.fx.GraphModule(root, graph)


def test_the_ranks_of_a_node_cost_one_compile_and_one_download_of_each_artifact(
    central: RunningServer, tier: RunningServer, network: Proxy, pinned: str
) -> None:
    before = metrics(central.metrics_url)
    asked_before = asked(tier, "compile"), asked(tier, "artifact")
    graph = graph_of(11.0)  # traced in one thread only: torch patches modules meanwhile

    def rank(number: int) -> tuple[str, bytes, bytes]:
        # All know only the central server's key.
        with lazyfx.connect(tier.address, verify_keys=pinned) as client:
            module = client.compile(graph, [DCE, CSE])
            assert torch.equal(module(torch.ones(2)), torch.full((2,), 22.0))
            return module.code, module.pickle(), bytes.fromhex(module.provenance("code").digest)

    first = rank(0)
    passed = network.received
    with ThreadPoolExecutor(RANKS) as pool:
        rest = list(pool.map(rank, range(RANKS)))
    # Health checks aside, nothing came over the network any more.
    assert network.received - passed < 2_000
    assert {each[0] for each in rest} == {first[0]}
    after = metrics(central.metrics_url)

    def grew(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert grew("lazyfx_lookups_total", result="miss") == 1
    assert grew("lazyfx_lookups_total") == 1
    assert grew("lazyfx_artifacts_total", kind="code") == 1
    assert grew("lazyfx_artifacts_total", kind="graph") == 1
    assert asked(tier, "compile") - asked_before[0] == 1
    # The code; the graph came with the compile.
    assert asked(tier, "artifact") - asked_before[1] == 1


def test_ranks_that_ask_in_the_same_moment_share_one_call(
    central: RunningServer, tier: RunningServer
) -> None:
    before = total(metrics(central.metrics_url), "lazyfx_requests_total", method="Compile")
    graph = long_graph(300)

    def rank(number: int) -> str:
        with lazyfx.connect(tier.address) as client:
            return client.compile(graph, [DCE]).code

    with ThreadPoolExecutor(RANKS) as pool:
        assert len(set(pool.map(rank, range(RANKS)))) == 1
    after = total(metrics(central.metrics_url), "lazyfx_requests_total", method="Compile")
    # At most the digest, and then the graph.
    assert after - before <= 2


def test_a_hit_of_the_upstream_is_a_hit_and_a_handle_works_at_both(
    central: RunningServer, tier: RunningServer
) -> None:
    with lazyfx.connect(central.address) as client:
        direct = client.compile(graph_of(12.0), [DCE])
        text = direct.code
    with lazyfx.connect(tier.address) as client:
        module = client.compile(graph_of(12.0), [DCE])
        assert module.cache.status == "hit"
        assert module.report.pipeline == direct.report.pipeline
        assert module.code == text
    with connected(tier.address) as near, connected(central.address) as far:
        request = pb.GetArtifactRequest(
            module_key=bytes.fromhex(module.key), kind=pb.ARTIFACT_KIND_GRAPH
        )
        parts = [list(stub.GetArtifact(request, timeout=60)) for stub in (near, far)]
    assert parts[0][1:-1] == parts[1][1:-1]
    assert parts[0][-1].trailer.digest == parts[1][-1].trailer.digest
    signed = [part[-1].trailer.signature.key_id for part in parts]
    assert signed[0] == signed[1]


def test_values_and_large_graphs_go_up_and_constants_come_down_once(
    central: RunningServer, tier: RunningServer, network: Proxy
) -> None:
    graph = foldable()
    x = torch.randn(3, 700)
    with lazyfx.connect(tier.address) as client:
        sent, received = network.sent, network.received
        assert torch.allclose(client.compile(graph, [FOLD])(x), graph(x))
        # The weight, and the constant of the same size.
        assert 1_960_000 < network.sent - sent < 2_500_000
        assert 1_960_000 < network.received - received < 2_500_000
        sent, received = network.sent, network.received
    with lazyfx.connect(tier.address) as client:
        assert torch.allclose(client.compile(graph, [FOLD])(x), graph(x))
        assert network.sent - sent < 5_000
        assert network.received - received < 5_000
        # A body of more than 100 KB is asked for.
        large = client.compile(long_graph(3_000))
        assert large.report.nodes_before > 3_000
    assert asked(tier, "compile", "failed") == asked(tier, "compile", "invalid") == 0
    assert total(metrics(tier.metrics_url), "lazyfx_pass_runs_total") == 0


def test_an_invalid_request_fails_as_it_would_have_failed_there(
    central: RunningServer, tier: RunningServer
) -> None:
    request = pb.CompileRequest()
    with connected(central.address) as far, connected(tier.address) as near:
        there = refused(lambda: far.Compile(request, timeout=60))
        here = refused(lambda: near.Compile(request, timeout=60))
    assert here == there
    assert here.code == "INVALID_ARGUMENT"


def test_a_restarted_tier_answers_from_its_store(
    launch: Callable[..., RunningServer], network: Proxy, tmp_path: Path
) -> None:
    flags = ("--workers", "1", "--upstream", network.address)
    first = launch(*flags, store=tmp_path / "tier")
    with lazyfx.connect(first.address) as client:
        text = client.compile(graph_of(13.0), [DCE]).code
    first.stop()
    second = launch(*flags, store=tmp_path / "tier")
    with lazyfx.connect(second.address) as client:
        module = client.compile(graph_of(13.0), [DCE])
        assert module.cache.status == "hit"
        assert module.code == text
    assert asked(second, "compile") == asked(second, "artifact") == 0
