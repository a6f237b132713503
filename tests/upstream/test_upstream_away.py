"""An upstream that is away, frozen or leads back: the server goes on by itself."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from harness import (
    DCE,
    Refusal,
    compile_request,
    connected,
    graph_of,
    metrics,
    paused_workers,
    refused,
    total,
    wait_until,
    worker_pids,
)
from proxy import proxied
from servers import RunningServer

import lazyfx
from lazyfx.shared.native.native_request import native_request
from lazyfx.v1 import compiler_pb2 as pb

ONE = ("--workers", "1")


def in_use(tier: RunningServer) -> bool:
    return bool(total(metrics(tier.metrics_url), "lazyfx_upstream_in_use"))


def lines(tier: RunningServer, text: str) -> int:
    return sum(text in line for line in tier.log)


# Traced here: torch patches modules meanwhile, for all threads.
GRAPHS = {float(number): graph_of(float(number)) for number in range(1, 10)}


def compiles(address: str, number: float) -> str:
    """Compile, run and render; the status of the compile."""
    with lazyfx.connect(address) as client:
        module = client.compile(GRAPHS[number], [DCE])
        assert torch.equal(module(torch.ones(2)), torch.full((2,), 2 * number))
        assert "def forward" in module.code
        return module.cache.status


def refusal_of_native(tier: RunningServer, key: str) -> Refusal:
    """What a tier without a compiler answers when it is asked for a native artifact."""
    request = pb.GetArtifactRequest(
        module_key=bytes.fromhex(key),
        kind=pb.ARTIFACT_KIND_INDUCTOR,
        native=native_request([torch.device("cpu")], None, {}),
    )
    with connected(tier.address) as stub:
        return refused(lambda: list(stub.GetArtifact(request, timeout=60)))


def test_a_killed_upstream_costs_nothing_but_work_and_is_used_when_it_is_back(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    central = launch(*ONE, store=tmp_path / "first")
    with proxied(central.address) as network:
        tier = launch(*ONE, "--upstream", network.address, store=tmp_path / "tier")
        assert in_use(tier)
        assert compiles(tier.address, 1.0) == "miss"
        with lazyfx.connect(tier.address) as client:
            key = client.compile(GRAPHS[1.0], [DCE]).key
        # What only the upstream could make: it says that it cannot, is away, or lacks the module.
        answer = refusal_of_native(tier, key)
        assert (answer.code, answer.retry_after) == ("FAILED_PRECONDITION", None)
        assert "builds no native artifacts" in answer.message
        central.process.kill()
        central.process.wait(10)
        for _ in range(2):
            answer = refusal_of_native(tier, key)
            assert answer.code == "UNAVAILABLE"
            assert answer.retry_after is not None
        # What came from the upstream is here; what is new is made here.
        assert compiles(tier.address, 1.0) == "hit"
        assert compiles(tier.address, 2.0) == "miss"
        wait_until(lambda: not in_use(tier), "the upstream is given up")
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda n: compiles(tier.address, n), (3.0, 4.0, 5.0, 6.0))) == {
                "miss"
            }
        assert lines(tier, "is not asked at present") == 1
        other = launch(*ONE, store=tmp_path / "second")
        network.target = other.address
        wait_until(lambda: in_use(tier), "the upstream is asked again")
        assert refusal_of_native(tier, key).code == "NOT_FOUND"
        assert compiles(tier.address, 7.0) == "miss"
        assert total(metrics(other.metrics_url), "lazyfx_lookups_total", result="miss") == 1
        # Its own graph is made here again, and a picture of a module of the upstream that is gone.
        with lazyfx.connect(tier.address) as client:
            assert "<svg" in str(client.compile(GRAPHS[1.0], [DCE]).picture())
    assert lines(tier, "is asked from now on") == 2


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "killed"])
def test_an_upstream_that_dies_or_freezes_in_the_middle_fails_nobody(
    launch: Callable[..., RunningServer], tmp_path: Path, frozen: bool
) -> None:
    central = launch(*ONE, store=tmp_path / "central")
    tier = launch(*ONE, "--upstream", central.address, store=tmp_path / "tier")
    with ThreadPoolExecutor(8) as pool, paused_workers(central.pid):
        waiting = [pool.submit(compiles, tier.address, 1.0 + n % 2) for n in range(8)]
        wait_until(
            lambda: total(metrics(central.metrics_url), "lazyfx_in_flight", stage="compile") == 2,
            "both compiles wait at the upstream",
        )
        central.process.send_signal(signal.SIGSTOP if frozen else signal.SIGKILL)
        try:
            assert {each.result() for each in waiting} <= {"miss", "joined", "hit"}
        finally:
            central.process.send_signal(signal.SIGCONT)
    outcome = total(
        metrics(tier.metrics_url), "lazyfx_upstream_requests_total", outcome="unreachable"
    )
    assert outcome == 2


def test_a_caller_who_leaves_stops_the_work_upstream(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    central = launch(*ONE, store=tmp_path / "central")
    tier = launch(*ONE, "--upstream", central.address, store=tmp_path / "tier")

    def in_flight() -> float:
        return total(metrics(central.metrics_url), "lazyfx_in_flight", stage="compile")

    with connected(tier.address) as stub:
        # A deadline goes up with the request; nothing is compiled here when it has passed.
        with paused_workers(central.pid):
            request = compile_request(graph_of(2.0), DCE)
            late = refused(lambda: stub.Compile(request, timeout=0.5))
            assert late.code == "DEADLINE_EXCEEDED"
            wait_until(lambda: in_flight() == 0, "the upstream stops")
        # The worker was replaced.
        wait_until(lambda: len(worker_pids(central.pid)) == 1, "a worker")
    with connected(tier.address) as stub, paused_workers(central.pid):
        first = stub.Compile.future(compile_request(graph_of(1.0), DCE), timeout=60)
        second = stub.Compile.future(compile_request(graph_of(1.0), DCE), timeout=60)
        wait_until(lambda: in_flight() == 1, "they wait at the upstream")
        first.cancel()
        assert not second.done()
        assert in_flight() == 1
        second.cancel()
        wait_until(lambda: in_flight() == 0, "the upstream stops")
    left = total(metrics(tier.metrics_url), "lazyfx_upstream_requests_total", outcome="left")
    assert left >= 1


def test_a_ring_is_refused_and_each_server_goes_on(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    with proxied("127.0.0.1:9") as back:
        first = launch(*ONE, "--upstream", back.address, store=tmp_path / "first")
        second = launch(*ONE, "--upstream", first.address, store=tmp_path / "second")
        back.target = second.address
        wait_until(lambda: in_use(first), "the ring is closed")
        assert compiles(first.address, 1.0) == "miss"
        assert compiles(second.address, 2.0) == "miss"
    told = [line for line in (*first.log, *second.log) if "leads back here" in line]
    assert told


def test_a_caller_cannot_end_the_use_of_the_upstream_by_a_long_way(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    region = launch(*ONE, "--upstream", "127.0.0.1:9", store=tmp_path / "region")
    tier = launch(*ONE, "--upstream", region.address, store=tmp_path / "tier")
    way = ("lazyfx-via", ",".join(f"{number:016x}" for number in range(4)))
    with connected(tier.address) as stub:
        request = compile_request(GRAPHS[1.0], DCE)
        answer = stub.Compile(request, timeout=60, metadata=[way])
        assert answer.cache.status == pb.CACHE_STATUS_MISS
    assert in_use(tier)
    assert not lines(tier, "is not asked at present")


def test_a_server_of_other_versions_is_not_used(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    targets = tmp_path / "targets.json"
    targets.write_text('{"methods": {"pin_memory": "(self: Self)"}}')
    central = launch(*ONE, "--allow-targets", str(targets), store=tmp_path / "central")
    tier = launch(*ONE, "--upstream", central.address, store=tmp_path / "tier")
    assert compiles(tier.address, 1.0) == "miss"
    assert not in_use(tier)
    assert lines(tier, "other versions of lazyfx, torch or Python, or other added targets") == 1
    found = metrics(tier.metrics_url)
    assert total(found, "lazyfx_upstream_requests_total", outcome="incompatible") == 1
    assert total(metrics(central.metrics_url), "lazyfx_lookups_total") == 0


def test_a_tier_starts_without_its_upstream_and_drains_while_it_is_frozen(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # does not listen
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        tier = launch(*ONE, "--upstream", address, store=tmp_path / "tier")
        assert compiles(tier.address, 1.0) == "miss"
        assert tier.stop() == 0
    central = launch(*ONE, store=tmp_path / "central")
    tier = launch(*ONE, "--upstream", central.address, store=tmp_path / "tier")
    os.kill(central.pid, signal.SIGSTOP)
    try:
        with connected(tier.address) as stub:
            call = stub.Compile.future(compile_request(graph_of(9.0), DCE), timeout=60)
            wait_until(
                lambda: total(metrics(tier.metrics_url), "lazyfx_in_flight", stage="compile") == 1,
                "the call waits",
            )
            # A call in flight is answered before the server stops.
            tier.process.send_signal(signal.SIGTERM)
            assert call.result().cache.status == pb.CACHE_STATUS_MISS
    finally:
        os.kill(central.pid, signal.SIGCONT)
    assert tier.stop() == 0
