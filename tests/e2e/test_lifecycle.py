"""A server's processes: draining, workers that die or overrun, restarts, bounds of the store."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import (
    CSE,
    DCE,
    PATIENCE,
    artifact,
    compile_request,
    connected,
    graph_of,
    http_status,
    long_graph,
    metrics,
    paused_workers,
    refusal_of,
    refused,
    repetitive_body,
    request_of_body,
    total,
    wait_until,
    worker_pids,
)

import lazyfx
from lazyfx.v1 import compiler_pb2 as pb


def health_of(address: str, service: str = "") -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=service)).status)


def in_flight(server, stage: str = "compile") -> float:
    return total(metrics(server.metrics_url), "lazyfx_in_flight", stage=stage)


@pytest.mark.parametrize("kind", ["compile", "render"])
def test_draining(launch, kind):
    """First health reports NOT_SERVING, then new requests are rejected, and requests in flight finish."""
    server = launch("--workers", "1")
    ready = server.metrics_url.replace("/metrics", "/readyz")
    assert http_status(ready) == 200
    assert health_of(server.address) == health_pb2.HealthCheckResponse.SERVING
    with connected(server.address) as stub, ThreadPoolExecutor(1) as threads:
        key = stub.Compile(compile_request(graph_of(5.0), DCE)).module_key
        with paused_workers(server.pid):
            if kind == "compile":
                work = threads.submit(stub.Compile, compile_request(graph_of(6.0), DCE))
            else:
                work = threads.submit(artifact, stub, key, pb.ARTIFACT_KIND_CODE)
            wait_until(lambda: in_flight(server, kind), "work in flight")
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: http_status(ready) == 503, "not being ready")
            assert health_of(server.address) == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (
                health_of(server.address, "lazyfx.v1.GraphCompiler")
                == health_pb2.HealthCheckResponse.NOT_SERVING
            )
            refusal = refused(lambda: stub.Compile(compile_request(graph_of(7.0), DCE)))
            assert refusal.code == "UNAVAILABLE"
            assert refusal.retry_after
            assert server.process.poll() is None
        done = work.result(PATIENCE)
    if kind == "compile":
        assert done.cache.status == pb.CACHE_STATUS_MISS
    else:
        assert b"def forward" in done.data
    assert server.process.wait(PATIENCE) == 0
    assert not [line for line in server.log if "ERROR" in line or "Traceback" in line]


def test_draining_ends_after_its_grace_period(launch):
    server = launch("--workers", "1", "--drain-seconds", "0.5")
    pids = worker_pids(server.pid)
    with connected(server.address) as stub:
        with paused_workers(server.pid):
            call = stub.Compile.future(compile_request(graph_of(), DCE))
            wait_until(lambda: in_flight(server), "a compile in flight")
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(PATIENCE) == 0
        with pytest.raises(grpc.RpcError):
            call.result()
    for pid in pids:
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the worker's end")  # noqa: B023


def busy_worker(server_pid: int) -> int:
    """The worker that has been computing since the call; waits until there is one."""
    before = {pid: _cpu_ticks(pid) for pid in worker_pids(server_pid)}
    busy: list[int] = []

    def found() -> bool:
        busy[:] = [p for p, ticks in before.items() if _cpu_ticks(p) > ticks + 10]
        return bool(busy)

    wait_until(found, "a busy worker")
    return busy[0]


def _cpu_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_workers_that_are_killed_cost_no_request(launch):
    server = launch("--workers", "2")
    kills = 6
    with connected(server.address) as stub:
        for number in range(kills):
            call = stub.Compile.future(request_of_body(repetitive_body(40_000 + number)))
            other = stub.Compile.future(compile_request(graph_of(float(number)), DCE))
            os.kill(busy_worker(server.pid), signal.SIGKILL)
            assert other.result(PATIENCE).module_key
            assert call.result(PATIENCE).module_key
    wait_until(lambda: total(metrics(server.metrics_url), "lazyfx_workers") == 2, "another worker")
    samples = metrics(server.metrics_url)
    assert total(samples, "lazyfx_worker_restarts_total", reason="crash") == kills
    assert total(samples, "lazyfx_requests_total", method="Compile", code="OK") == 2 * kills
    pids = worker_pids(server.pid)
    assert server.stop() == 0
    for pid in pids:
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the worker's end")  # noqa: B023


def test_a_graph_on_which_two_workers_died_is_refused(launch):
    server = launch("--workers", "1")
    doomed = request_of_body(repetitive_body(150_000))
    digest = doomed.graph_digest.sha256.hex()
    with connected(server.address) as stub:
        call = stub.Compile.future(doomed)
        for deaths in (1, 2):
            os.kill(busy_worker(server.pid), signal.SIGKILL)
            wait_until(
                lambda: total(
                    metrics(server.metrics_url), "lazyfx_worker_restarts_total", reason="crash"
                ) == deaths,  # noqa: B023
                "the worker's end",
            )  # fmt: skip
        with pytest.raises(grpc.RpcError) as caught:
            call.result(PATIENCE)
        for refusal in (refusal_of(caught.value), refused(lambda: stub.Compile(doomed))):
            assert refusal.code == "FAILED_PRECONDITION"
            assert digest in refusal.message
        assert stub.Compile(compile_request(graph_of(1.0), DCE)).module_key
    assert total(metrics(server.metrics_url), "lazyfx_graphs_refused_total", job="compile") == 2
    assert any(digest in line for line in server.log)


@pytest.fixture(scope="module")
def single(launch_for_file):
    """One worker, and a queue for one job."""
    return launch_for_file("--workers", "1", "--max-queue", "1")


def test_a_worker_that_dies_before_its_job_begins_costs_nothing(single):
    server = single
    with connected(server.address) as stub:
        with paused_workers(server.pid) as pids:
            call = stub.Compile.future(compile_request(graph_of(), DCE))
            wait_until(lambda: in_flight(server), "a compile in flight")
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        assert call.result(PATIENCE).module_key


def test_a_job_that_overruns_is_stopped(launch):
    server = launch("--workers", "1", "--job-timeout", "1")
    with connected(server.address) as stub:
        with paused_workers(server.pid):
            refusal = refused(lambda: stub.Compile(compile_request(graph_of(), DCE)))
        assert refusal.code == "DEADLINE_EXCEEDED"
        assert "job_timeout" in refusal.message
        again = stub.Compile(compile_request(graph_of(), DCE))
        assert again.cache.status == pb.CACHE_STATUS_MISS
    samples = metrics(server.metrics_url)
    assert total(samples, "lazyfx_worker_restarts_total", reason="timeout") == 1


def test_more_jobs_than_may_wait_are_rejected(single):
    server = single
    with connected(server.address) as stub:
        with paused_workers(server.pid):
            calls = [
                stub.Compile.future(compile_request(graph_of(float(i)), DCE)) for i in range(61, 63)
            ]
            wait_until(lambda: in_flight(server) == 2, "one job that runs and one that waits")
            refusal = refused(lambda: stub.Compile(compile_request(graph_of(99.0), DCE)))
        assert refusal.code == "RESOURCE_EXHAUSTED"
        assert refusal.retry_after
        assert all(call.result(PATIENCE).module_key for call in calls)


def test_results_survive_a_restart(launch, tmp_path):
    store = tmp_path / "kept"
    request = compile_request(graph_of(3.0), DCE, CSE)
    server = launch("--workers", "1", store=store)
    with connected(server.address) as stub:
        first = stub.Compile(request)
        code = artifact(stub, first.module_key, pb.ARTIFACT_KIND_CODE)
    assert server.stop() == 0
    # With another hash seed.
    server = launch("--workers", "1", store=store, own_interpreter=True)
    with connected(server.address) as stub:
        again = stub.Compile(compile_request(graph_of(3.0), DCE, CSE, inline=False))
        assert again.cache.status == pb.CACHE_STATUS_HIT
        assert again.module_key == first.module_key
        assert again.report.passes == first.report.passes
        cached = artifact(stub, first.module_key, pb.ARTIFACT_KIND_CODE)
        assert cached.data == code.data
        assert not cached.header.rendered
        assert again.report.recompiles.performed == 1
        other = stub.Compile(compile_request(graph_of(3.0), DCE, inline=False))
        assert pb.MissReason.Name(other.cache.miss_reason) == "MISS_REASON_NEW_PIPELINE"


def test_a_bounded_store_forgets_what_was_not_used(launch, tmp_path):
    store = tmp_path / "small"
    bound = 100_000
    server = launch(
        "--workers", "1", "--store-memory-bytes", "30000", "--store-disk-bytes", str(bound),
        store=store,
    )  # fmt: skip
    with lazyfx.connect(server.address) as client, connected(server.address) as stub:
        first = graph_of(0.5)
        expected = client.compile(first, [DCE]).code
        assert stub.Compile(compile_request(first, DCE)).cache.status == pb.CACHE_STATUS_HIT
        kept = client.compile(first, [DCE])
        for i in range(40):
            stub.Compile(compile_request(long_graph(300 + i), DCE))
            samples = metrics(server.metrics_url)
            for tier in ("memory", "disk"):
                held = total(samples, "lazyfx_store_bytes", tier=tier)
                assert held <= total(samples, "lazyfx_store_limit_bytes", tier=tier)
        on_disk = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        assert on_disk <= bound * 1.2
        assert total(samples, "lazyfx_store_evictions_total", tier="disk") > 0
        assert kept.picture().startswith("<svg")
        assert kept.code == expected


def test_in_memory_only_an_evicted_module_is_made_again(launch, tmp_path):
    """The handle compiles again by itself; raw callers get NOT_FOUND."""
    server = launch(
        "--workers", "1", "--store-memory-bytes", "40000", "--store-path", "",
    )  # fmt: skip
    with lazyfx.connect(server.address) as client, connected(server.address) as stub:
        graph = graph_of(0.25)
        handle = client.compile(graph, [DCE])
        key = bytes.fromhex(handle.key)
        for i in range(40):
            other = stub.Compile(compile_request(long_graph(300 + i), DCE))
            artifact(stub, other.module_key, pb.ARTIFACT_KIND_GRAPH)
        refusal = refused(lambda: artifact(stub, key, pb.ARTIFACT_KIND_CODE))
        assert refusal.code == "NOT_FOUND"
        assert "def forward(self, x)" in handle.code
        for i in range(40):
            stub.Compile(compile_request(long_graph(400 + i), DCE))
        refusal = refused(lambda: artifact(stub, key, pb.ARTIFACT_KIND_PICTURE))
        assert refusal.code == "NOT_FOUND"
        again = stub.Compile(compile_request(graph, DCE))
        assert again.cache.status == pb.CACHE_STATUS_MISS
        assert pb.MissReason.Name(again.cache.miss_reason) == "MISS_REASON_EVICTED"
    samples = metrics(server.metrics_url)
    assert total(samples, "lazyfx_store_entries", tier="memory") > 0
    assert total(samples, "lazyfx_store_entries", tier="disk") == 0
    assert not list(tmp_path.rglob("modules"))
