"""Several servers that share a Redis make each result once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import pytest
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
    total,
    wait_until,
)
from replicas import JOINED, MISS, all_at_once, calling, compile_of, resume, waits_for_another
from servers import RunningServer

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_crowd_of_clients_over_three_servers_costs_one_compile(patient):
    compiles_graph = compile_of(1.0)

    def call(stub):
        response = compiles_graph(stub)
        return response, artifact(stub, response.module_key, pb.ARTIFACT_KIND_CODE).data

    compiles, led = patient.compiles, patient.flights("led")
    rendered = patient.sum("lazyfx_artifacts_total", source="rendered")
    answers = all_at_once(patient.servers, 60, call)
    assert len({(response.module_key, code) for response, code in answers}) == 1
    assert patient.compiles == compiles + 1
    assert patient.flights("led") == led + 1
    assert patient.sum("lazyfx_artifacts_total", source="rendered") == rendered + 1
    assert [response.cache.status for response, _ in answers].count(MISS) == 1
    wait_until(lambda: patient.leases == 0, "all leases ended")


def test_waiter_that_leaves_does_not_end_the_flight(patient):
    one, two, _ = patient.servers
    with paused_workers(one.pid) as pids, calling(one, 2.0) as first:
        wait_until(lambda: patient.leases, "a lease")
        with calling(two, 2.0) as second, calling(two, 2.0) as third:
            wait_until(lambda: waits_for_another(two), "a flight that waits")
            second.cancel()
            with connected(two.address) as stub, pytest.raises(grpc.RpcError) as caught:
                stub.Compile(compile_request(graph_of(2.0), CSE, DCE), timeout=0.3)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            third.cancel()
        wait_until(lambda: not waits_for_another(two), "its end on the second server")
        assert patient.leases == 1
        with calling(two, 2.0) as late:
            wait_until(lambda: waits_for_another(two), "a flight that waits")
            assert not first.done()
            resume(pids)
            assert first.result().cache.status == MISS
            assert late.result().cache.status == JOINED
            assert "another server" in late.result().cache.explanation


def test_lease_ends_at_once_when_the_last_waiter_leaves(patient):
    one, two, _ = patient.servers
    taken_over = patient.flights("taken_over")
    with paused_workers(one.pid), calling(one, 3.0) as first:
        wait_until(lambda: patient.leases, "a lease")
        with calling(two, 3.0) as second:
            wait_until(lambda: waits_for_another(two), "a flight that waits")
            first.cancel()
            # The lease of 60 seconds would have lasted longer than this call may.
            assert second.result().cache.status == MISS
    assert patient.flights("taken_over") == taken_over + 1


def test_holder_that_fails_leaves_it_to_another(patient):
    one, two, _ = patient.servers
    with paused_workers(one.pid) as pids, calling(one, 4.0) as first:
        wait_until(lambda: patient.leases, "a lease")
        with calling(two, 4.0) as second:
            wait_until(lambda: waits_for_another(two), "a flight that waits")
            for _ in range(2):  # a job is tried twice
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            assert second.result().module_key
            assert first.result().module_key == second.result().module_key


@pytest.mark.long
def test_slow_flight_is_hedged_and_the_first_result_serves_all(hasty):
    one, two = hasty.servers
    hedged, outrun = hasty.flights("hedged"), hasty.flights("outrun")
    with paused_workers(one.pid), calling(one, 5.0) as first:
        wait_until(lambda: hasty.leases, "a lease")
        with calling(two, 5.0) as second:
            assert second.result().cache.status == MISS
        assert hasty.flights("hedged") == hedged + 1
        # The workers of the first server still do nothing.
        assert first.result().cache.status == JOINED
        assert first.result().module_key == second.result().module_key
    assert hasty.flights("outrun") == outrun + 1


@pytest.mark.long
def test_frozen_holder_is_replaced_and_answers_when_it_is_back(hasty):
    one, two = hasty.servers
    taken_over = total(metrics(two.metrics_url), "lazyfx_fleet_flights_total", outcome="taken_over")
    with paused_workers(one.pid), calling(one, 6.0) as first:
        wait_until(lambda: hasty.leases, "a lease")
        os.kill(one.pid, signal.SIGSTOP)
        try:
            with calling(two, 6.0) as second:
                assert second.result().cache.status == MISS
        finally:
            os.kill(one.pid, signal.SIGCONT)
        assert first.result().module_key == second.result().module_key
    found = metrics(two.metrics_url)
    assert total(found, "lazyfx_fleet_flights_total", outcome="taken_over") == taken_over + 1


def test_killed_holder_is_replaced(patient, replica):
    holder = replica("--store-lease-seconds", "2.5", "--store-hedge-seconds", "600")
    two = patient.servers[1]
    with paused_workers(holder.pid), calling(holder, 7.0) as first:
        wait_until(lambda: patient.leases, "a lease")
        with calling(two, 7.0) as second:
            wait_until(lambda: waits_for_another(two), "a flight that waits")
            holder.process.kill()
            assert second.result().cache.status == MISS
        with pytest.raises(grpc.RpcError):
            first.result()


async def many_compiles(servers: Sequence[RunningServer], clients: int, number: float) -> list[Any]:
    """What as many clients get, each on a connection of its own that is there before the call."""
    request = compile_request(graph_of(number), CSE, DCE)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(servers[n % len(servers)].address, options)
            )
            for n in range(clients)
        ]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        calls = [GraphCompilerStub(each).Compile(request, timeout=PATIENCE) for each in channels]
        return list(await asyncio.gather(*calls))


@pytest.mark.long
def test_two_hundred_clients_over_three_servers_cost_one_compile(patient):
    compiles = patient.compiles
    answers = asyncio.run(many_compiles(patient.servers, 200, 10.0))
    assert len({answer.module_key for answer in answers}) == 1
    assert patient.compiles == compiles + 1


@pytest.mark.long
def test_thousand_connections_to_one_server_cost_one_compile(launch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    server = launch("--workers", "1")
    answers = asyncio.run(many_compiles([server], 1000, 11.0))
    assert len({answer.module_key for answer in answers}) == 1
    found = metrics(server.metrics_url)
    assert total(found, "lazyfx_compile_seconds_count") == 1
    assert total(found, "lazyfx_requests_total", method="Compile", code="OK") == 1000


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)],
    ids=["killed", "frozen"],
)
def test_redis_that_fails_halfway_costs_one_compile_a_server(patient, number, threads):
    graph = 100.0 + number
    compiles, unleased = patient.compiles, patient.flights("unleased")
    one = patient.servers[0]
    with paused_workers(one.pid) as pids, calling(one, graph) as first:
        wait_until(lambda: patient.leases, "a lease")
        crowd = threads.submit(all_at_once, patient.servers, 30, compile_of(graph))
        wait_until(lambda: all(map(waits_for_another, patient.servers)), "flights everywhere")
        patient.store.signal(number)
        wait_until(lambda: patient.flights("unleased") == unleased + 2, "flights without leases")
        resume(pids)
        keys = {answer.module_key for answer in crowd.result()}
        assert keys == {first.result().module_key}
    assert patient.compiles == compiles + 3
    if number == signal.SIGKILL:
        patient.store.kill()
        patient.store.start()
    else:
        patient.store.signal(signal.SIGCONT)
    wait_until(
        lambda: patient.sum("lazyfx_store_in_use", tier="redis") == 3, "the store being used"
    )
