"""Abandoned work is cancelled to make room for other work."""

from __future__ import annotations

import grpc
import pytest
from harness import (
    DCE,
    PATIENCE,
    compile_request,
    connected,
    graph_of,
    metrics,
    paused_workers,
    repetitive_body,
    request_of_body,
    total,
    wait_until,
)

from lazyfx.v1 import compiler_pb2 as pb


@pytest.fixture(scope="module")
def server(launch_for_file):
    return launch_for_file("--workers", "1")


def _abandoned(server, outcome: str) -> float:
    samples = metrics(server.metrics_url)
    return total(samples, "lazyfx_abandoned_total", stage="compile", outcome=outcome)


def _under_way(server) -> float:
    return total(metrics(server.metrics_url), "lazyfx_in_flight", stage="compile")


def _give_up(calls: list[grpc.Future]) -> None:
    for call in calls:
        call.cancel()


def test_abandoned_heavy_requests_do_not_delay_a_small_one(server):
    heavy = [request_of_body(repetitive_body(100_000 + number)) for number in range(8)]
    with connected(server.address) as stub:
        calls = [stub.Compile.future(request) for request in heavy]
        wait_until(lambda: _under_way(server) == len(heavy), "all of them in flight")
        _give_up(calls)
        wait_until(lambda: not _under_way(server), "nothing in flight")
        assert stub.Compile(compile_request(graph_of(1.0), DCE), timeout=PATIENCE).module_key
    samples = metrics(server.metrics_url)
    # The small one alone was compiled to its end.
    assert total(samples, "lazyfx_compile_seconds_count") == 1
    assert _abandoned(server, "dropped") >= len(heavy) - 1
    assert _abandoned(server, "dropped") + _abandoned(server, "stopped") == len(heavy)


def test_an_abandoned_flood_costs_nothing(server):
    before = metrics(server.metrics_url)
    flood = [compile_request(graph_of(1000.0 + number), DCE) for number in range(200)]
    with connected(server.address) as stub:
        with paused_workers(server.pid):
            calls = [stub.Compile.future(request) for request in flood]
            wait_until(lambda: _under_way(server) == len(flood), "all of them in flight")
            _give_up(calls)
            wait_until(lambda: not _under_way(server), "nothing in flight")
        assert stub.Compile(compile_request(graph_of(2.0), DCE), timeout=PATIENCE).module_key
    after = metrics(server.metrics_url)
    compiled = "lazyfx_compile_seconds_count"
    assert total(after, compiled) == total(before, compiled) + 1


SERVED = (pb.CACHE_STATUS_MISS, pb.CACHE_STATUS_JOINED, pb.CACHE_STATUS_HIT)


def test_a_request_repeated_while_the_first_is_being_stopped_is_served(server):
    request = compile_request(graph_of(3.0), DCE)
    with connected(server.address) as stub:
        with paused_workers(server.pid):
            first = stub.Compile.future(request)
            wait_until(lambda: _under_way(server), "a compile in flight")
            first.cancel()
            second = stub.Compile.future(request)
        answer = second.result(PATIENCE)
        # A hit, if the worker has answered the first before it was stopped.
        assert answer.cache.status in SERVED
