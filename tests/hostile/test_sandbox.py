"""A compromised worker can reach its job and nothing else."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import prisoner
import pytest
import torch
from server.harness import (
    artifact,
    compile_request,
    connected,
    graph_of,
    metrics,
    refused,
    repetitive_body,
    request_of_body,
    total,
    worker_pids,
)

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.execution import (
    ProcessExecutor,
    WorkerCrashed,
    WorkerOutOfCpu,
    start_forkserver,
)
from lazyfx_server.security.sandbox import LAYERS, Policy, available, readable_paths
from lazyfx_server.settings.loading import load
from lazyfx_server.workers import pools

if TYPE_CHECKING:
    from servers import RunningServer

HERE = Path(__file__)
# The paths of this file's imports stand for those of a server.
POLICY = Policy(available(), 2**30, readable_paths())


def everything() -> None:
    if available() != LAYERS:
        pytest.skip(f"this kernel has only {', '.join(available())}")


def tried(orders: list[dict[str, object]], policy: Policy = POLICY, **options: object) -> list[str]:
    """The answers of a confined worker to these orders."""
    from lazyfx_server.security.sandbox import enter

    async def run() -> list[str]:
        executor = ProcessExecutor(
            prisoner.run, processes=start_forkserver(), workers=1,
            initializer=partial(enter, policy), **options,  # type: ignore[arg-type]
        )  # fmt: skip
        try:
            await executor.start()
            return [
                (await executor.run(json.dumps(order).encode(), timeout=60)).decode()
                for order in orders
            ]
        finally:
            await executor.close()

    return asyncio.run(run())


def test_a_worker_can_do_what_its_job_needs() -> None:
    done = tried([{"do": "a_thread"}, {"do": "import_something"}, {"do": "environment"}])
    assert [text.split()[0] for text in done] == ["done"] * 3


def test_a_worker_reaches_nothing_but_its_job(tmp_path: Path) -> None:
    everything()
    secret = tmp_path / "signing.pem"
    secret.write_text("secret")
    torch_library = next(Path(torch.__file__).parent.joinpath("lib").glob("*.so"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        attempts: list[dict[str, object]] = [
            {"do": "read", "path": str(secret)},
            {"do": "read", "path": "/etc/passwd"},
            {"do": "read", "path": "/proc/self/environ"},
            {"do": "read", "path": f"/proc/{os.getpid()}/environ"},
            {"do": "read", "path": str(Path.cwd() / "pyproject.toml")},
            {"do": "write", "path": str(tmp_path / "marker")},
            {"do": "write", "path": str(HERE.parent / "marker")},
            {"do": "write", "path": "/tmp/lazyfx-marker"},
            {"do": "append_to_stderr_s_file"},
            {"do": "fork"},
            {"do": "execute"},
            {"do": "connect", "port": listening.getsockname()[1]},
            {"do": "unix_socket"},
            {"do": "socket_pair"},
            {"do": "executable_memory"},
            {"do": "made_executable"},
            {"do": "load_library", "path": str(torch_library)},
            {"do": "memory_file"},
            {"do": "end_the_server", "pid": os.getpid()},
            {"do": "have_the_server_signalled", "pid": os.getpid()},
            {"do": "read_the_server_s_memory", "pid": os.getpid()},
            {"do": "trace_the_server", "pid": os.getpid()},
            {"do": "vm_read", "pid": os.getpid()},
            {"do": "raise_the_limits"},
            {"do": "take_memory", "size": 2**31},
        ]
        answers = tried(attempts)
    for attempt, answer in zip(attempts, answers, strict=True):
        assert not answer.startswith("done"), attempt
    assert not (tmp_path / "marker").exists()


def test_a_worker_s_processes_and_files_are_bounded(
    launch: Callable[..., RunningServer],
) -> None:
    server = launch("--workers", "1", "--worker-threads", "1")
    (worker,) = worker_pids(server.pid)
    rows = Path(f"/proc/{worker}/limits").read_text("ascii").splitlines()
    limits = {row[:25].strip(): row[25:].split()[:2] for row in rows}
    assert all(0 < int(bound) < 10**6 for bound in limits["Max processes"])
    assert limits["Max file size"] == ["0", "0"]
    with connected(server.address) as stub:
        stub.Compile(compile_request(graph_of(1.5), "shape_propagation"))


@pytest.mark.parametrize("without", ["landlock", "seccomp"])
def test_one_layer_holds_when_the_other_is_missing(without: str, tmp_path: Path) -> None:
    everything()
    policy = Policy(tuple(x for x in LAYERS if x != without), 2**30, readable_paths())
    (tmp_path / "secret").write_text("secret")
    attempts: list[dict[str, object]] = [{"do": "write", "path": str(tmp_path / "marker")}]
    if without == "landlock":
        attempts += [{"do": "fork"}, {"do": "unix_socket"}, {"do": "executable_memory"}]
    else:
        attempts += [{"do": "read", "path": str(tmp_path / "secret")}]
    for attempt, answer in zip(attempts, tried(attempts, policy), strict=True):
        assert not answer.startswith("done"), attempt


def test_a_layer_that_cannot_be_entered_stops_the_worker() -> None:
    policy = Policy(("limits",), 2**70, ())  # no kernel takes such a bound
    with pytest.raises(WorkerCrashed, match="sandbox"):
        tried([], policy)


def test_processor_time_is_bounded_from_outside() -> None:
    with pytest.raises(WorkerOutOfCpu):
        tried([{"do": "spin"}], cpu_seconds=1.0)
    assert tried([{"do": "environment"}] * 3, cpu_seconds=1.0)[2].startswith("done")


def test_no_process_runs_jobs_of_two_owners() -> None:
    async def run() -> list[str]:
        executor = ProcessExecutor(prisoner.run, processes=start_forkserver(), workers=1)
        job = json.dumps({"do": "pid"}).encode()
        try:
            await executor.start()
            owners = ["alice", "alice", None, "bob", "bob", None, "alice"]
            return [(await executor.run(job, timeout=60, owner=o)).decode() for o in owners]
        finally:
            await executor.close()

    first, second, own, third, fourth, own_again, fifth = asyncio.run(run())
    assert first == second == own
    assert third == fourth == own_again
    assert len({first, third, fifth}) == 3


@pytest.fixture(scope="module")
def server(launch_for_file: Callable[..., RunningServer]) -> RunningServer:
    return launch_for_file("--workers", "1", own_interpreter=True)


def test_a_server_says_how_its_workers_are_confined(server: RunningServer) -> None:
    with connected(server.address) as stub:
        status = stub.GetServerInfo(pb.GetServerInfoRequest()).sandbox
    assert tuple(status.layers) == available()
    assert {*status.layers, *status.missing} == set(LAYERS)
    found = metrics(server.metrics_url)
    for layer in LAYERS:
        expected = float(layer in status.layers)
        assert total(found, "lazyfx_sandbox_layers", layer=layer) == expected


# They refuse to run without options, or over anything else than a joint graph.
PARTICULAR = {"replace_pattern", "split_module", "partition_by_support", "partition_min_cut"}


def test_passes_and_artifacts_work_inside(server: RunningServer) -> None:
    with connected(server.address) as stub:
        names = [p.name for p in stub.ListPasses(pb.ListPassesRequest()).passes]
        names = [name for name in names if name not in PARTICULAR]
        made = stub.Compile(compile_request(graph_of(), *names))
        for kind in (
            pb.ARTIFACT_KIND_CODE, pb.ARTIFACT_KIND_PICKLE, pb.ARTIFACT_KIND_PACKAGE,
            pb.ARTIFACT_KIND_PICTURE, pb.ARTIFACT_KIND_TORCHSCRIPT,
        ):  # fmt: skip
            assert artifact(stub, made.module_key, kind).data
    assert total(metrics(server.metrics_url), "lazyfx_worker_restarts_total") == 0


def test_turning_it_off_is_visible(launch: Callable[..., RunningServer]) -> None:
    server = launch("--sandbox", "off", "--workers", "1")
    with connected(server.address) as stub:
        status = stub.GetServerInfo(pb.GetServerInfoRequest()).sandbox
    assert list(status.missing) == list(LAYERS)
    assert any("not fully confined" in line for line in server.log)
    assert total(metrics(server.metrics_url), "lazyfx_sandbox_layers") == 0


def test_a_server_that_requires_more_than_there_is_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pools, "available", lambda: ("privileges", "limits"))
    with pytest.raises(OSError, match="lacks landlock, seccomp"):
        pools.protection(load(["--sandbox", "required"]).workers)
    assert pools.protection(load([]).workers).missing == ("landlock", "seccomp")


def test_a_job_that_needs_too_much_memory_fails_alone(launch: Callable[..., RunningServer]) -> None:
    server = launch("--workers", "1", "--worker-memory-bytes", "64MiB")
    with connected(server.address) as stub:
        body = request_of_body(repetitive_body(150_000), None)
        for _ in range(2):
            refusal = refused(lambda: stub.Compile(body))
            # C++ code that gets no memory may end its process.
            expected = {
                "RESOURCE_EXHAUSTED": "worker_memory_bytes",
                "INTERNAL": "only this request",
            }
            assert expected[refusal.code] in refusal.message
        assert stub.GetStats(pb.GetStatsRequest()) is not None


def test_the_kernel_s_numbers_are_those_of_this_machine() -> None:
    from lazyfx_server.security.sandbox.numbers import this_machine

    machine = this_machine()
    if machine is None:
        pytest.skip("the system calls of this machine are not known")
    libc = ctypes.CDLL(None)
    assert libc.syscall(machine.numbers["getpid"]) == os.getpid()
    assert libc.syscall(machine.numbers["gettid"]) > 0
    assert libc.syscall(machine.numbers["getppid"]) == os.getppid()
    assert libc.syscall(machine.numbers["geteuid"]) == os.geteuid()
