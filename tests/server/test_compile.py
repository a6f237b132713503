"""Compile over gRPC: hits, misses and their reasons, joins, names, reports."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import torch
from harness import (
    CSE,
    DCE,
    PATIENCE,
    artifact,
    compile_request,
    connected,
    graph_of,
    metrics,
    paused_workers,
    refused,
    total,
    wait_until,
)

import lazyfx
from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server(launch_for_file):
    return launch_for_file("--workers", "1")


@pytest.fixture
def stub(server):
    with connected(server.address) as stub:
        yield stub


@pytest.fixture
def fresh():
    """A graph that no test before has used."""
    return graph_of(float(next(_numbers)))


def reason(response: pb.CompileResponse) -> str:
    return pb.MissReason.Name(response.cache.miss_reason).removeprefix("MISS_REASON_")


def test_a_miss_then_a_hit_of_the_same_module(stub, fresh):
    first = stub.Compile(compile_request(fresh, DCE, CSE))
    second = stub.Compile(compile_request(fresh, DCE, CSE, inline=False))
    assert first.cache.status == pb.CACHE_STATUS_MISS
    assert second.cache.status == pb.CACHE_STATUS_HIT
    assert first.module_key == second.module_key
    assert len(first.module_key) == 32
    assert second.report == first.report
    assert not second.cache.miss_reason


def test_a_report_tells_each_pass_and_what_laziness_saved(stub, fresh):
    report = stub.Compile(compile_request(fresh, DCE, CSE)).report
    assert (report.nodes_before, report.nodes_after) == (6, 4)
    assert [(p.name, p.nodes_before, p.nodes_after, p.changed) for p in report.passes] == [
        (DCE, 6, 5, True),
        (CSE, 5, 4, True),
    ]
    assert report.pipeline == f"{DCE},{CSE}"
    assert report.recompiles.requested == sum(p.recompiles.requested for p in report.passes) == 2
    assert report.recompiles.performed == 0
    assert report.recompiles.saved == 2
    assert report.stale
    assert 0 < report.pass_seconds <= report.seconds


def test_an_unknown_digest_says_what_to_send(stub, fresh):
    request = compile_request(fresh, DCE, inline=False)
    refusal = refused(lambda: stub.Compile(request))
    assert refusal.code == "FAILED_PRECONDITION"
    assert refusal.missing == (f"blobs/{request.graph_digest.sha256.hex()}",)


def test_a_digest_is_enough_once_the_graph_is_known(stub, fresh):
    stub.Compile(compile_request(fresh, DCE))
    response = stub.Compile(compile_request(fresh, CSE, inline=False))
    assert response.cache.status == pb.CACHE_STATUS_MISS
    assert reason(response) == "NEW_PIPELINE"
    assert CSE in response.cache.explanation


def test_a_graph_may_be_uploaded_before(stub, fresh):
    encoded = wire.encode(fresh)
    digest = graph_pb2.Digest(sha256=encoded.digest, size_bytes=len(encoded.body))
    stub.UploadBlobs(iter([pb.UploadBlobsRequest(digest=digest, data=encoded.body)]))
    response = stub.Compile(compile_request(fresh, DCE, inline=False))
    assert response.cache.status == pb.CACHE_STATUS_MISS


def test_a_compile_moves_no_artifact_bytes_and_renders_nothing(server, stub):
    before = metrics(server.metrics_url)

    def f(x):
        for i in range(2000):
            x = x + i
        return x

    response = stub.Compile(compile_request(torch.fx.symbolic_trace(f), DCE))
    after = metrics(server.metrics_url)
    assert response.ByteSize() < 1000
    assert not response.rendered
    for name in ("lazyfx_artifacts_total", "lazyfx_recompiles_performed_total"):
        assert total(after, name) == total(before, name)


def test_reasons_for_misses(stub, fresh):
    assert reason(stub.Compile(compile_request(fresh, DCE))) == "NEW_GRAPH"
    assert reason(stub.Compile(compile_request(fresh, DCE, CSE))) == "NEW_PIPELINE"
    skipped = stub.Compile(compile_request(fresh, DCE, skip=True))
    assert (skipped.cache.status, reason(skipped)) == (pb.CACHE_STATUS_MISS, "SKIPPED")
    model = torch.fx.symbolic_trace(torch.nn.Linear(2, 2))
    bound = compile_request(model, DCE)
    stub.Compile(bound)
    weights = wire.content_digest(torch.ones(2, 2))
    upload = pb.UploadBlobsRequest(digest=weights, data=torch.ones(2, 2).numpy().tobytes())
    stub.UploadBlobs(iter([upload]))
    place = next(
        i
        for i, row in enumerate(
            graph_pb2.GraphBody.FromString(bound.graph.body).graphs[0].attributes
        )
        if row.HasField("tensor") and len(_shape(bound, i)) == 2
    )
    bound.values.add(graph=0, attribute=place, content=weights)
    assert reason(stub.Compile(bound)) == "NEW_VALUES"


def _shape(request: pb.CompileRequest, attribute: int) -> list[int]:
    body = graph_pb2.GraphBody.FromString(request.graph.body)
    return list(body.tensors[body.graphs[0].attributes[attribute].tensor.tensor].shape)


def test_identical_requests_in_flight_run_once(server, fresh):
    before = metrics(server.metrics_url)
    request = compile_request(fresh, DCE)
    count = 8
    with ThreadPoolExecutor(count) as threads, connected(server.address) as stub:
        with paused_workers(server.pid):
            calls = [threads.submit(stub.Compile, request, timeout=PATIENCE) for _ in range(count)]
            wait_until(
                lambda: total(metrics(server.metrics_url), "lazyfx_in_flight", stage="compile"),
                "a compile in flight",
            )
            # A later call on the same connection has been answered: those before have arrived.
            for _ in range(5):
                stub.GetServerInfo(pb.GetServerInfoRequest())
        answers = [call.result() for call in calls]
    after = metrics(server.metrics_url)
    statuses = sorted(a.cache.status for a in answers)
    assert statuses.count(pb.CACHE_STATUS_MISS) == 1
    assert pb.CACHE_STATUS_JOINED in statuses
    assert len({a.module_key for a in answers}) == 1
    joined = [a for a in answers if a.cache.status == pb.CACHE_STATUS_JOINED]
    assert {reason(a) for a in joined} == {"NEW_GRAPH"}

    def grew(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert grew("lazyfx_compile_seconds_count") == 1
    assert grew("lazyfx_lookups_total", result="miss") == 1
    assert grew("lazyfx_lookups_total") == count
    assert grew("lazyfx_lookups_total", result="joined") == len(joined)


def test_a_waiter_that_leaves_does_not_end_the_flight(server, stub, fresh):
    request = compile_request(fresh, DCE)
    with paused_workers(server.pid):
        leaving = stub.Compile.future(request, timeout=PATIENCE)
        wait_until(
            lambda: total(metrics(server.metrics_url), "lazyfx_in_flight", stage="compile"),
            "a compile in flight",
        )
        staying = stub.Compile.future(request, timeout=PATIENCE)
        stub.GetServerInfo(pb.GetServerInfoRequest())
        leaving.cancel()
        wait_until(
            lambda: total(
                metrics(server.metrics_url), "lazyfx_requests_total", method="Compile",
                code="CANCELLED",
            ),
            "the server noticing that a caller left",
        )  # fmt: skip
    assert staying.result().cache.status in (pb.CACHE_STATUS_JOINED, pb.CACHE_STATUS_HIT)
    assert stub.Compile(request).cache.status == pb.CACHE_STATUS_HIT


def test_a_flight_is_stopped_when_all_callers_have_left(server, stub, fresh):
    request = compile_request(fresh, DCE)
    before = metrics(server.metrics_url)
    with paused_workers(server.pid):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Compile(request, timeout=0.5)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(
            lambda: not total(metrics(server.metrics_url), "lazyfx_in_flight", stage="compile"),
            "the compile being given up",
        )
    stopped = {"stage": "compile", "outcome": "stopped"}
    after = metrics(server.metrics_url)
    grew = total(after, "lazyfx_abandoned_total", **stopped)
    assert grew == total(before, "lazyfx_abandoned_total", **stopped) + 1
    assert stub.Compile(request).cache.status == pb.CACHE_STATUS_MISS


def test_graphs_that_differ_in_names_share_a_module_and_keep_their_names(server, client):
    number = float(next(_numbers))
    one = client.compile(graph_of(number, argument="speed"), [DCE, CSE])
    other = client.compile(graph_of(number, argument="angle"), [DCE, CSE])
    assert one.key == other.key
    assert (one.cache.status, other.cache.status) == ("miss", "hit")
    assert "def forward(self, speed)" in one.code
    assert "def forward(self, angle)" in other.code
    assert "angle" not in one.code
    x = torch.randn(3)
    assert torch.equal(one(x), other(x))
    assert "speed" in one.picture()
    assert "angle" in other.picture()


def test_a_report_follows_touches(client, fresh):
    module = client.compile(fresh, [DCE, CSE])
    assert (module.report.recompiles.performed, module.report.stale) == (0, True)
    first = module.code
    assert (module.report.recompiles.performed, module.report.stale) == (1, False)
    assert module.report.recompiles.saved == 1
    assert module.code == first
    assert module.report.recompiles.performed == 1
    module.picture()
    assert module.report.recompiles.performed == 1
    module(torch.ones(2))
    assert module.report.recompiles.performed == 2
    module(torch.ones(2))
    assert module.report.recompiles.performed == 2
    again = client.compile(fresh, [DCE, CSE])
    assert again.cache.status == "hit"
    assert again.report.recompiles.performed == 1


def test_a_hit_knows_what_is_rendered(stub, fresh):
    response = stub.Compile(compile_request(fresh, DCE))
    artifact(stub, response.module_key, pb.ARTIFACT_KIND_CODE)
    again = stub.Compile(compile_request(fresh, DCE))
    assert list(again.rendered) == [pb.ARTIFACT_KIND_CODE]
    assert not again.report.stale


def test_the_passes_are_part_of_the_key(stub, fresh):
    keys = {
        stub.Compile(compile_request(fresh, *passes)).module_key
        for passes in ((), (DCE,), (CSE,), (DCE, CSE), (CSE, DCE), (DCE, DCE))
    }
    assert len(keys) == 6


def test_no_passes_give_the_graph_back(client, fresh):
    module = client.compile(fresh)
    x = torch.randn(4)
    assert torch.equal(module(x), fresh(x))
    assert module.report.passes == ()
    assert module.report.nodes_before == module.report.nodes_after


@pytest.mark.parametrize("part", ["modules", "blobs"])
def test_damage_on_disk_is_a_miss_and_is_repaired(launch, tmp_path: Path, part: str):
    store = tmp_path / "kept"
    server = launch("--workers", "1", store=store)
    request = compile_request(graph_of(), DCE)
    with connected(server.address) as stub:
        key = stub.Compile(request).module_key
        code = artifact(stub, key, pb.ARTIFACT_KIND_CODE).data
    server.stop()

    damaged = _damage(store, part)
    assert damaged
    server = launch("--workers", "1", store=store)
    with connected(server.address) as stub:
        response = stub.Compile(request)
        assert response.cache.status == pb.CACHE_STATUS_MISS
        assert reason(response) == "CORRUPT"
        assert response.module_key == key
        assert artifact(stub, key, pb.ARTIFACT_KIND_CODE).data == code
        assert stub.Compile(request).cache.status == pb.CACHE_STATUS_HIT
    assert total(metrics(server.metrics_url), "lazyfx_store_corrupt_total") >= 1


def _damage(store: Path, part: str) -> list[Path]:
    damaged = []
    for path in store.rglob("*"):
        if path.is_file() and part in str(path.relative_to(store)):
            data = bytearray(path.read_bytes())
            for i in range(len(data) // 2, min(len(data), len(data) // 2 + 8)):
                data[i] ^= 0xFF
            path.write_bytes(bytes(data))
            damaged.append(path)
    return damaged


def test_the_client_and_the_raw_stub_agree_on_the_digest(client, stub, fresh):
    module = client.compile(fresh, [DCE])
    assert stub.Compile(compile_request(fresh, DCE)).module_key.hex() == module.key
    assert module.digest == lazyfx.digest(fresh)
