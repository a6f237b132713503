"""lazyfx on a node of a Ray cluster: the same worker processes as those of a server without Ray.

Ray's actor calls `open_node`. A graph is never in the actor's own process as more than bytes: each
job runs in a confined worker process, which the actor can kill.
"""

from __future__ import annotations

import logging
import platform
import secrets
from importlib.metadata import version

import torch

from lazyfx.shared.wire.targets.user_targets import parse
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.dispatch.crashes import CrashTracker
from lazyfx_server.compiling.dispatch.native_builders import LocalBuilders
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights, FleetSettings
from lazyfx_server.compiling.kernels.kernel_flights import KernelFlights
from lazyfx_server.compiling.kernels.kernel_store import KernelStore
from lazyfx_server.compiling.key import environment_digest
from lazyfx_server.errors import RequestError
from lazyfx_server.execution import Executor, RestartReason, SpawnSource, start_forkserver
from lazyfx_server.execution.ray_engine import NodeRefused
from lazyfx_server.security import allowed
from lazyfx_server.settings.limits import WorkerLimits
from lazyfx_server.settings.pass_settings import NativeSettings
from lazyfx_server.settings.service_settings import WorkerSettings
from lazyfx_server.store import MemoryStore
from lazyfx_server.telemetry import Observers
from lazyfx_server.v1 import worker_pb2 as worker
from lazyfx_server.workers.local_pools import local_natives
from lazyfx_server.workers.pools import NativeUnavailable, Sources, pass_workers, protection
from lazyfx_server.workers.starting import worker_start

_log = logging.getLogger(__name__)

OPENER = f"{__name__}:open_node"
"""Names `open_node` for `RayEngine`."""
# Some thousand kernels.
_KERNEL_BYTES = 256 << 20
PASSES = "passes"
"""The pool of workers that run passes and render artifacts."""
NATIVE = "native"
"""The pool of native compiles."""


def versions() -> dict[str, str]:
    """What must be equal on a server and its nodes."""
    return {
        "lazyfx": version("lazyfx"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def open_node(data: bytes) -> RayNode:
    """The pools of this node.

    Raises:
        NodeRefused: This node would not compute the same as the server.
    """
    config = worker.NodeConfig.FromString(data)
    for name, here in versions().items():
        if (there := getattr(config, name)) != here:
            raise NodeRefused(f"it has {name} {here}, and the server has {there}")
    if config.added_targets:
        allowed.allow_user_targets(parse(config.added_targets))
    if config.environment != environment_digest():
        raise NodeRefused("its --allow-targets differ from the server's")
    return RayNode(config)


class RayNode:
    """The pools of a node; see `NodePools`.

    Args:
        config: The server's settings.

    Attributes:
        pools: `PASSES`, and `NATIVE` if the node can build native artifacts.
    """

    def __init__(self, config: worker.NodeConfig) -> None:
        workers = WorkerSettings.model_validate_json(config.workers)
        limits = WorkerLimits.model_validate_json(config.jobs)
        native = NativeSettings.model_validate_json(config.native)
        start = worker_start(
            workers, native, config.operator_modules, config.added_targets, config.log_format
        )
        sources = Sources(
            start_forkserver(start.fork_preload, start.without_gpus),
            SpawnSource(start.preload, start.environment),
        )
        held = protection(workers)
        self._description = worker.NodeDescription(
            sandbox=pb.SandboxStatus(layers=held.layers, missing=held.missing)
        )
        passes = pass_workers(workers, limits, sources, held.layers, _log_restart)
        self.pools: dict[str, Executor] = {PASSES: passes}
        self._natives: LocalBuilders | None = None
        try:
            made = local_natives(
                native, sources, CrashTracker(0.0), Observers(), _log_restart, _own_kernels()
            )
        except NativeUnavailable as error:
            self._description.native_problem = str(error)
        else:
            if made is not None:
                self._natives, self.pools[NATIVE] = made

    async def start(self) -> bytes:
        """Start the workers; returns a serialized NodeDescription."""
        await self.pools[PASSES].start()
        if self._natives is not None:
            try:
                await self._natives.start()
            except RequestError as error:
                self._description.native_problem = str(error)
                await self.pools.pop(NATIVE).close()
            else:
                self._description.native.CopyFrom(self._natives.targets[0])
                self._description.native_sandbox.CopyFrom(self._natives.sandbox)
        return self._description.SerializeToString()

    async def ask(self, question: bytes) -> bytes:
        """The serialized ArtifactProgress of the native job with this name."""
        if self._natives is None:
            return b""
        return self._natives.progress(question).SerializeToString()

    async def close(self) -> None:
        """Stop the workers."""
        for executor in self.pools.values():
            await executor.close()


def node_config(
    workers: WorkerSettings,
    limits: WorkerLimits,
    native: NativeSettings,
    operator_modules: list[str],
    added_targets: str,
    log_format: str,
) -> bytes:
    """The settings of nodes, as `open_node` reads them."""
    return worker.NodeConfig(
        environment=environment_digest(),
        workers=workers.model_dump_json(),
        jobs=limits.model_dump_json(),
        native=native.model_dump_json(),
        operator_modules=operator_modules,
        added_targets=added_targets,
        log_format=log_format,
        **versions(),
    ).SerializeToString()


def _own_kernels() -> KernelFlights:
    """The kernels that this node has compiled, in memory: it has no store."""
    store = KernelStore(MemoryStore(_KERNEL_BYTES), secrets.token_bytes(32), lambda: None)
    alone = FleetFlights(None, None, Observers(), FleetSettings())
    return KernelFlights(store, alone, Observers())


def _log_restart(reason: RestartReason) -> None:
    _log.debug("a worker was replaced: %s", reason)
