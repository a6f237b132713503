"""What a server makes of the nodes of a Ray cluster, without one; `test_ray.py` has one."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server import operator_checks
from lazyfx_server.compiling.dispatch.crashes import CrashTracker
from lazyfx_server.compiling.limits.admission import Admission, QueuedJob
from lazyfx_server.compiling.limits.cost_estimates import JobKind
from lazyfx_server.compiling.limits.target_queues import TargetQueues
from lazyfx_server.compiling.native_artifacts import NativeCompiles
from lazyfx_server.errors import FailedPreconditionError
from lazyfx_server.execution import (
    ExecutorClosed,
    NoWorker,
    ProcessExecutor,
    WorkerFailed,
    start_forkserver,
)
from lazyfx_server.execution.ray_engine import Node, NodeRefused, RayEngine, RayExecutor
from lazyfx_server.settings.limits import CallLimits, WorkerLimits
from lazyfx_server.settings.loading import load
from lazyfx_server.settings.pass_settings import NativeSettings
from lazyfx_server.settings.service_settings import WorkerSettings
from lazyfx_server.telemetry import Observers
from lazyfx_server.v1 import worker_pb2 as worker
from lazyfx_server.workers.fallback import FallbackExecutor
from lazyfx_server.workers.ray_node import node_config, open_node
from lazyfx_server.workers.ray_pools import RayBuilders, common_sandbox


def target(isa: str, *flags: str, accelerator: str = "") -> pb.NativeTarget:
    return pb.NativeTarget(
        torch="2.13.0", torch_key=b"key", python="abi", vector_isa=isa, cpu_flags=flags,
        accelerator=accelerator,
    )  # fmt: skip


def node(name: str, native: pb.NativeTarget | None = None) -> Node:
    description = worker.NodeDescription()
    if native is not None:
        description.native.CopyFrom(native)
    return Node(name, name, {"passes": 2, "native": 1}, description.SerializeToString())


class Cluster(RayEngine):
    """An engine that was told which nodes there are."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        super().__init__("local", "", b"")
        for each in nodes:
            self.join(each)

    def join(self, node: Node) -> None:
        self.cluster.add(node)

    def leave(self, name: str) -> None:
        self.cluster.remove(name, name, "it left", refused=False)


OLD, NEW = target("avx2", "avx2"), target("avx512", "avx2", "avx512f")
GPU = target("avx2", "avx2", accelerator="cuda 13, H200")


def builders(cluster: Cluster) -> RayBuilders:
    return RayBuilders(cluster, 60.0, CrashTracker(0.0), Observers())


def queue(slots: int) -> Admission:
    return Admission(slots, CallLimits())


def job() -> QueuedJob:
    return QueuedJob("tenant", JobKind(b"what", b"family", 1000))


def wanted(native: pb.NativeTarget) -> pb.GetArtifactRequest:
    request = pb.GetArtifactRequest(kind=pb.ARTIFACT_KIND_INDUCTOR)
    request.native.target.CopyFrom(native)
    return request


async def test_local_processes_run_passes_while_there_is_no_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster([])
    nodes = RayExecutor(cluster, "passes")
    local = ProcessExecutor(str.encode, processes=start_forkserver(), workers=3)  # type: ignore[arg-type]
    both = FallbackExecutor(nodes, local)
    assert both.workers == 3
    with pytest.raises(WorkerFailed):  # a local process has run it
        await both.run(b"job", timeout=60)
    assert len(local.pids) == 3
    cluster.join(node("a"))
    assert both.workers == 2

    async def leaves(*_: object) -> bytes:
        cluster.leave("a")
        raise NoWorker("it has left")

    monkeypatch.setattr(cluster, "run", leaves)
    with pytest.raises(WorkerFailed):
        await both.run(b"job", timeout=60)
    await both.close()
    with pytest.raises(ExecutorClosed):
        await both.run(b"job", timeout=60)


async def test_targets_are_those_of_nodes_and_remembered() -> None:
    cluster = Cluster([node("a", OLD), node("b", NEW), node("c"), node("d", GPU)])
    made = builders(cluster)
    assert made.targets == [NEW, OLD, GPU], "the most capable first, GPUs last"
    cluster.leave("b")
    assert made.targets == [OLD, GPU, NEW], "those without a node after all others"


async def test_a_request_finds_the_target_that_runs_where_the_caller_is() -> None:
    cluster = Cluster([node("a", OLD), node("b", NEW)])
    native = NativeCompiles(builders(cluster), queue, Observers())
    keys = {native.variant(wanted(each)) for each in (OLD, NEW)}
    assert len(keys) == 2
    has_gpu = target("avx2", "avx2", accelerator="")
    assert native.variant(wanted(has_gpu)) in keys
    with pytest.raises(FailedPreconditionError, match=r"none of the 2 kinds .*avx512.*avx2.*neon"):
        native.variant(wanted(target("neon", "asimd")))
    cluster.leave("a")
    cluster.leave("b")
    assert native.variant(wanted(NEW)) in keys, "what is stored is still found"


async def test_jobs_that_wait_for_one_kind_of_node_delay_no_other() -> None:
    cluster = Cluster([node("a", OLD), node("b", NEW)])
    queues = TargetQueues(queue, builders(cluster).slots_for)
    async with AsyncExitStack() as held:
        await held.enter_async_context(queues.of(OLD).slot(job()))
        waiting = asyncio.ensure_future(held.enter_async_context(queues.of(OLD).slot(job())))
        await asyncio.sleep(0.01)
        await held.enter_async_context(queues.of(NEW).slot(job()))
        assert not waiting.done()
        cluster.join(node("c", OLD))
        queues.resize()
        await waiting
    cluster.leave("a")
    cluster.leave("c")
    queues.resize()
    async with queues.of(OLD).slot(job()):
        """So that it is told that no node can run it."""


async def test_a_node_with_a_gpu_also_builds_for_graphs_without_one() -> None:
    made = builders(Cluster([node("a", OLD), node("b", GPU), node("c")]))
    assert (made.slots_for(OLD), made.slots_for(GPU), made.slots_for(NEW)) == (2, 1, 0)


async def test_without_a_target_a_request_is_told_why() -> None:
    without = node("b")
    without.description = worker.NodeDescription(native_problem="no g++").SerializeToString()
    for nodes, why in (([], "not connected yet"), ([node("a"), without], "node b: no g\\+\\+")):
        native = NativeCompiles(builders(Cluster(nodes)), queue, Observers())
        with pytest.raises(FailedPreconditionError, match=why):
            native.variant(wanted(OLD))


async def test_a_job_without_a_node_fails_at_once() -> None:
    executor = RayExecutor(Cluster([node("a", OLD)]), "native", lambda _: False)
    with pytest.raises(NoWorker):
        await executor.run(b"", timeout=1)


def test_a_sandbox_is_as_good_as_that_of_the_worst_node() -> None:
    good = pb.SandboxStatus(layers=["limits", "seccomp"])
    bad = pb.SandboxStatus(layers=["limits"], missing=["seccomp"])
    assert common_sandbox([good, bad]) == pb.SandboxStatus(layers=["limits"], missing=["seccomp"])
    assert common_sandbox([]) == pb.SandboxStatus()


@pytest.mark.parametrize("name", ["lazyfx", "torch", "python"])
def test_a_node_refuses_a_server_of_another_version(name: str) -> None:
    settings = WorkerSettings(), WorkerLimits(), NativeSettings()
    config = worker.NodeConfig.FromString(node_config(*settings, [], "", "text"))
    setattr(config, name, "0.0.1")
    with pytest.raises(NodeRefused, match=f"it has {name} .* the server has 0.0.1"):
        open_node(config.SerializeToString())


def test_a_node_refuses_a_server_with_other_targets() -> None:
    settings = WorkerSettings(), WorkerLimits(), NativeSettings()
    config = worker.NodeConfig.FromString(node_config(*settings, [], "", "text"))
    config.environment = bytes(32)
    with pytest.raises(NodeRefused, match="allow-targets"):
        open_node(config.SerializeToString())


@pytest.mark.parametrize("text", ["ray", "ray://", "ray://host", "ray:host:1", "dask", "ray://h:p"])
def test_an_executor_that_is_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(["--executor", text])
    assert "ray://HOST:PORT" in capsys.readouterr().err


def test_ray_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = load(["--executor", "ray:local", "--listen", "127.0.0.1:0", "--metrics-port", "0"])
    with pytest.raises(operator_checks.SetupError, match=r"install lazyfx\[ray\]"):
        operator_checks.check_setup(settings)
