"""The nodes of a Ray cluster as the workers of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache

from cachetools import TTLCache
from google.protobuf.message import DecodeError

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.dispatch.crashes import CrashTracker
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.kernels.kernel_answers import AnsweringExecutor
from lazyfx_server.compiling.kernels.kernel_flights import KernelFlights
from lazyfx_server.execution import Executor, NoWorker
from lazyfx_server.execution.ray_engine import RayEngine, RayExecutor
from lazyfx_server.settings.model import Settings
from lazyfx_server.telemetry import Observer
from lazyfx_server.v1 import worker_pb2 as worker
from lazyfx_server.workers.ray_node import NATIVE, OPENER, node_config

_MAX_PROGRESS_BYTES = 1024
_MAX_PROGRESS = 1024


def ray_engine(settings: Settings, added_targets: str) -> RayEngine | None:
    """The cluster that runs the jobs of a server; None if its own worker processes do.

    Args:
        settings: All settings.
        added_targets: The file of added targets; empty without one.
    """
    address = settings.workers.ray_address
    if address is None:
        return None
    config = node_config(
        settings.workers,
        settings.jobs,
        settings.native,
        settings.passes.operator_modules,
        added_targets,
        settings.logs.log_format,
    )
    return RayEngine(address, OPENER, config)


@lru_cache(maxsize=256)
def described(data: bytes) -> worker.NodeDescription:
    """The description of a node."""
    return worker.NodeDescription.FromString(data)


def common_sandbox(descriptions: Sequence[pb.SandboxStatus]) -> pb.SandboxStatus:
    """The layers that all of these have, and those that one of them lacks."""
    if not descriptions:
        return pb.SandboxStatus()
    missing = list(dict.fromkeys(name for each in descriptions for name in each.missing))
    layers = [
        name for name in descriptions[0].layers if all(name in each.layers for each in descriptions)
    ]
    return pb.SandboxStatus(layers=layers, missing=missing)


def pass_sandbox(engine: RayEngine, local: pb.SandboxStatus | None = None) -> pb.SandboxStatus:
    """How the workers that run passes are confined, on the node that confines them least.

    Args:
        engine: The cluster.
        local: How those of this machine are, if they run passes, too.
    """
    found = [described(node.description).sandbox for node in engine.cluster.nodes]
    return common_sandbox(found if local is None else [*found, local])


class RayBuilders:
    """The nodes that build native artifacts; see `NativeBuilders`.

    Targets are remembered when their nodes leave, so that artifacts that are stored are found.

    Args:
        engine: The cluster, which is started and closed by its owner.
        timeout: Seconds that one job may take.
        crashes: Remembers graphs on which workers died.
        observer: Notified of retries and refusals.
        kernels: The kernels that nodes ask for, and give; None if they share none.
    """

    def __init__(
        self,
        engine: RayEngine,
        timeout: float,
        crashes: CrashTracker,
        observer: Observer,
        kernels: KernelFlights | None = None,
    ) -> None:
        self._engine = engine
        self._timeout = timeout
        self._crashes = crashes
        self._observer = observer
        self._kernels = kernels
        self._known: dict[bytes, pb.NativeTarget] = {}
        self._progress: TTLCache[bytes, pb.ArtifactProgress] = TTLCache(_MAX_PROGRESS, ttl=60.0)
        self._asking: dict[bytes, asyncio.Task[None]] = {}

    @property
    def targets(self) -> Sequence[pb.NativeTarget]:
        """See `NativeBuilders.targets`: those of present nodes first, the most capable of them."""
        present = set()
        for node in self._engine.cluster.nodes:
            description = described(node.description)
            if description.HasField("native"):
                name = description.native.SerializeToString(deterministic=True)
                present.add(name)
                self._known.setdefault(name, description.native)

        def rank(name: bytes) -> tuple[bool, bool, int, bytes]:
            target = self._known[name]
            return name not in present, bool(target.accelerator), -len(target.cpu_flags), name

        return [self._known[name] for name in sorted(self._known, key=rank)]

    @property
    def sandbox(self) -> pb.SandboxStatus:
        """See `NativeBuilders.sandbox`."""
        found = [described(node.description) for node in self._engine.cluster.nodes]
        return common_sandbox([each.native_sandbox for each in found if each.HasField("native")])

    @property
    def why_none(self) -> str:
        """See `NativeBuilders.why_none`: the reason of a node, or of the cluster."""
        for node in self._engine.cluster.nodes:
            if problem := described(node.description).native_problem:
                return f"node {node.host}: {problem}"
        return self._engine.cluster.status.problem or "no node has registered yet"

    @property
    def shares_kernels(self) -> bool:
        """See `NativeBuilders.shares_kernels`; a node that shares none says so in its log."""
        return True

    async def start(self) -> None:
        """See `NativeBuilders.start`: nodes come when they come."""

    def jobs_for(self, target: pb.NativeTarget) -> Jobs:
        """See `NativeBuilders.jobs_for`."""
        executor: Executor = RayExecutor(self._engine, NATIVE, _builds_for(target))
        if self._kernels is not None:
            executor = AnsweringExecutor(executor, self._kernels)
        return Jobs(
            executor, self._timeout, self._crashes, bounds="native", observer=self._observer
        )

    def slots_for(self, target: pb.NativeTarget) -> int:
        """See `NativeBuilders.slots_for`; a node with a GPU counts for graphs without one, too."""
        return RayExecutor(self._engine, NATIVE, _builds_for(target)).workers

    def progress(self, place: bytes) -> pb.ArtifactProgress:
        """See `NativeBuilders.progress`: what a node said last; this has it asked again."""
        if place not in self._asking:
            self._asking[place] = asyncio.ensure_future(self._ask(place))
        return self._progress.get(place, pb.ArtifactProgress(stage="waiting"))

    async def _ask(self, place: bytes) -> None:
        try:
            self._progress[place] = await self._found(place)
        finally:
            del self._asking[place]

    async def _found(self, place: bytes) -> pb.ArtifactProgress:
        for node in [node for node in self._engine.cluster.nodes if node.busy.get(NATIVE)]:
            try:
                answer = await self._engine.ask(node, place)
                found = pb.ArtifactProgress.FromString(answer[:_MAX_PROGRESS_BYTES])
            except (NoWorker, DecodeError):
                continue
            if found.stage and found.stage != "waiting":
                return found
        return pb.ArtifactProgress(stage="waiting")

    async def close(self) -> None:
        """See `NativeBuilders.close`."""


def _builds_for(target: pb.NativeTarget) -> Callable[[bytes], bool]:
    """Whether a node builds for exactly this target, which names a GPU only if it is used."""

    def fits(description: bytes) -> bool:
        found = described(description)
        if not found.HasField("native"):
            return False
        made = pb.NativeTarget()
        made.CopyFrom(found.native)
        if not target.accelerator:
            made.accelerator = ""
        return made == target

    return fits
