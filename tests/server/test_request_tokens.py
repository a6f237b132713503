"""A repeated request is sent as its token."""

from __future__ import annotations

import asyncio

import pytest
import torch
from harness import CSE, DCE, compile_request, connected, graph_of, metrics, refused, total

import lazyfx
from lazyfx.shared.pass_specs import normalize
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.security.bearer_tokens import add_token

UNKNOWN = bytes(32)


@pytest.fixture(scope="module")
def server(launch_for_file):
    return launch_for_file("--workers", "1")


@pytest.fixture
def stub(server):
    with connected(server.address) as stub:
        yield stub


def token_of(stub, number: float, *passes: str) -> bytes:
    stub.Compile(compile_request(graph_of(number), *passes))
    hit = stub.Compile(compile_request(graph_of(number), *passes, inline=False))
    assert len(hit.request_token) == 32
    return hit.request_token


def test_a_token_stands_for_the_whole_request(stub):
    tokens = [token_of(stub, 1.0, DCE), token_of(stub, 1.0, CSE), token_of(stub, 2.0, DCE)]
    assert len(set(tokens)) == 3
    for token, number, name in zip(tokens, (1.0, 1.0, 2.0), (DCE, CSE, DCE), strict=True):
        known = stub.Compile(compile_request(graph_of(number), name, inline=False))
        again = stub.Compile(pb.CompileRequest(request_token=token))
        assert again.cache.status == pb.CACHE_STATUS_HIT
        assert again.module_key == known.module_key
        assert again.report == known.report


def test_a_request_with_its_graph_earns_no_token(stub):
    request = compile_request(graph_of(3.0), DCE)
    assert not stub.Compile(request).request_token
    assert not stub.Compile(request).request_token


@pytest.mark.parametrize(
    "request_", [
        pb.CompileRequest(request_token=UNKNOWN, eager=True),
        pb.CompileRequest(request_token=UNKNOWN, passes=[pb.PassSpec(name=DCE)]),
        pb.CompileRequest(request_token=UNKNOWN, skip_cache_lookup=True),
        pb.CompileRequest(request_token=UNKNOWN[:31]),
        pb.CompileRequest(request_token=bytes(1 << 20)),
    ],
)  # fmt: skip
def test_a_token_stands_alone_and_has_32_bytes(stub, request_):
    refusal = refused(lambda: stub.Compile(request_))
    assert refusal.code == "INVALID_ARGUMENT"
    assert [*refusal.fields] == ["request_token"]
    assert len(refusal.message) < 1000


def test_a_token_that_stands_for_nothing_is_missing(stub):
    refusal = refused(lambda: stub.Compile(pb.CompileRequest(request_token=UNKNOWN)))
    assert refusal.code == "FAILED_PRECONDITION"
    assert refusal.missing == (f"requests/{UNKNOWN.hex()}",)


def test_the_third_compile_sends_a_token_only(server):
    module = graph_of(4.0)
    with lazyfx.connect(server.address) as client:
        statuses = [client.compile(module, [DCE]).cache.status for _ in range(4)]
        sent = client._flows.compile_caller.first_request(
            client._flows.preparer.prepare(module, normalize([DCE]))
        )
    assert statuses == ["miss", "hit", "hit", "hit"]
    assert sent.ByteSize() == 34


def test_a_client_outlives_the_server_that_gave_it_a_token(launch):
    module, x = graph_of(5.0), torch.randn(3)
    server = launch("--workers", "1")
    with lazyfx.connect(server.address) as client:
        for _ in range(3):
            client.compile(module, [DCE])
        server.stop()
        launch("--workers", "1", "--listen", server.address)
        handle = client.compile(module, [DCE])
        assert handle.cache.status == "hit"
        assert torch.equal(handle(x), module(x))


def test_hits_by_token_are_counted_charged_and_isolated_like_all_calls(launch, tmp_path):
    alice, bob = (
        {"metadata": [("authorization", f"Bearer {add_token(tmp_path / 'tokens', name)}")]}
        for name in ("alice", "bob")
    )
    server = launch(
        "--workers", "1", "--tokens", str(tmp_path / "tokens"), "--quota-requests", "6"
    )  # fmt: skip
    with connected(server.address) as stub:
        stub.Compile(compile_request(graph_of(7.0), DCE), **alice)
        by_digest = compile_request(graph_of(7.0), DCE, inline=False)
        by_token = pb.CompileRequest(request_token=stub.Compile(by_digest, **alice).request_token)
        for _ in range(4):
            assert stub.Compile(by_token, **alice).cache.status == pb.CACHE_STATUS_HIT
        stats = stub.GetStats(pb.GetStatsRequest(), **alice)
        assert (stats.hits, stats.misses, stats.tenants[0].hits) == (5, 1, 5)
        assert stats.reused_seconds > 0
        counted = metrics(server.metrics_url)
        assert total(counted, "lazyfx_requests_total", method="Compile", code="OK") == 6
        assert refused(lambda: stub.Compile(by_token, **alice)).code == "RESOURCE_EXHAUSTED"
        assert refused(lambda: stub.Compile(by_token, **bob)).code == "FAILED_PRECONDITION"
        assert refused(lambda: stub.Compile(by_token)).code == "UNAUTHENTICATED"


@pytest.mark.slow
async def test_many_at_a_time_outlive_it_too(launch):
    module = graph_of(6.0)
    server = launch("--workers", "1")
    async with lazyfx.connect_async(server.address) as client:
        for _ in range(3):
            await client.compile(module, [DCE])
        server.stop()
        launch("--workers", "1", "--listen", server.address)
        handles = await asyncio.gather(*(client.compile(module, [DCE]) for _ in range(8)))
    assert {handle.cache.status for handle in handles} == {"hit"}
