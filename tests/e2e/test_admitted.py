"""Calls that wait for a worker: their order, their deadlines, and what is told to clients."""

from __future__ import annotations

import asyncio
import time

import pytest
from harness import (
    DCE,
    PATIENCE,
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
from lazyfx.v1 import compiler_pb2 as pb

# How long the first job takes, because its worker is paused; and much less than that.
_LONG, _SHORT = 3.0, 1.0


@pytest.fixture(scope="module")
def server(launch_for_file):
    return launch_for_file("--workers", "1")


def _in_flight(server) -> float:
    return total(metrics(server.metrics_url), "lazyfx_in_flight", stage="compile")


def test_a_call_that_is_too_short_for_its_job_is_refused_at_once(server):
    slow = graph_of(1.0)
    request = compile_request(slow, DCE)
    with connected(server.address) as stub:
        with paused_workers(server.pid):
            call = stub.Compile.future(request)
            wait_until(lambda: _in_flight(server), "a compile in flight")
            time.sleep(_LONG)
        assert call.result(PATIENCE).cache.status == pb.CACHE_STATUS_MISS
        request.skip_cache_lookup = True
        # Nothing runs: what is refused here is refused before a worker is asked.
        with paused_workers(server.pid):
            told = refused(lambda: stub.Compile(request, timeout=_SHORT))
            assert told.code == "RESOURCE_EXHAUSTED"
            assert "the call ends in" in told.message
            assert told.retry_after is None
            for compile_again in (_compile_again, _compile_again_async):
                with pytest.raises(lazyfx.errors.OverloadedError, match="the call ends in"):
                    compile_again(server.address, slow)
        # A hit needs no worker, and a call with enough time gets one.
        assert stub.Compile(compile_request(slow, DCE), timeout=_SHORT).module_key
        assert stub.Compile(request, timeout=PATIENCE).module_key
    refusals = total(
        metrics(server.metrics_url), "lazyfx_work_refused_total", pool="pass", reason="deadline"
    )
    assert refusals == 3


def _compile_again(address: str, graph) -> None:
    with lazyfx.connect(address) as client:
        client.compile(graph, [DCE], skip_cache_lookup=True, timeout=_SHORT)


def _compile_again_async(address: str, graph) -> None:
    async def compile_again() -> None:
        async with lazyfx.connect_async(address) as client:
            await client.compile(graph, [DCE], skip_cache_lookup=True, timeout=_SHORT)

    asyncio.run(compile_again())


def test_an_interactive_call_goes_before_a_batch(server):
    ended = []
    with connected(server.address) as stub:

        def begin(number: float, priority: pb.Priority.ValueType):
            request = compile_request(graph_of(number), DCE)
            request.priority = priority
            call = stub.Compile.future(request)
            call.add_done_callback(lambda _: ended.append(number))
            return call

        with paused_workers(server.pid):
            calls = [begin(10.0, pb.PRIORITY_BATCH)]
            wait_until(lambda: _in_flight(server) == 1, "a job that runs")
            calls += [begin(number, pb.PRIORITY_PREWARM) for number in (11.0, 12.0)]
            calls += [begin(number, pb.PRIORITY_BATCH) for number in (13.0, 14.0)]
            wait_until(lambda: _in_flight(server) == 5, "jobs that wait")
            calls.append(begin(15.0, pb.PRIORITY_UNSPECIFIED))
            wait_until(lambda: _in_flight(server) == 6, "a job that is more urgent")
        for call in calls:
            call.result(PATIENCE)
    wait_until(lambda: len(ended) == len(calls), "all callbacks")
    assert ended == [10.0, 15.0, 13.0, 14.0, 11.0, 12.0]


def test_clients_state_their_priority(server):
    def counted(priority: str) -> float:
        samples = metrics(server.metrics_url)
        return total(samples, "lazyfx_queue_seconds_count", pool="pass", priority=priority)

    before = {name: counted(name) for name in ("interactive", "batch", "prewarm")}
    with lazyfx.connect(server.address, priority="batch") as client:
        remote = client.compile(graph_of(20.0), [DCE])
        assert remote.code  # rendered with the priority of its compile
        client.compile(graph_of(21.0), [DCE], priority="prewarm")
        many = dict(client.compile_many([(graph_of(22.0), [DCE])]))
        assert many[0].cache.status == "miss"
    grew = {name: counted(name) - count for name, count in before.items()}
    assert grew == {"interactive": 0, "batch": 3, "prewarm": 1}
    with pytest.raises(lazyfx.LazyfxError, match="one of interactive, batch, prewarm"):
        lazyfx.connect(server.address, priority="urgent")


@pytest.mark.parametrize("inline", [True, False])
def test_a_priority_without_a_name_is_refused(server, inline):
    request = compile_request(graph_of(30.0), DCE, inline=inline)
    request.priority = 99
    with connected(server.address) as stub:
        told = refused(lambda: stub.Compile(request))
        assert told.code == "INVALID_ARGUMENT"
        assert set(told.fields) == {"priority"}
        wanted = pb.GetArtifactRequest(module_key=bytes(32), kind=pb.ARTIFACT_KIND_CODE, priority=9)
        assert set(refused(lambda: list(stub.GetArtifact(wanted))).fields) == {"priority"}
