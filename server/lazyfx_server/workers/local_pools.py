"""Pools with the objects that their jobs need, for this machine: a server's own, or a node's."""

from __future__ import annotations

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.dispatch.builds import Builds
from lazyfx_server.compiling.dispatch.crashes import CrashTracker
from lazyfx_server.compiling.dispatch.native_builders import LocalBuilders
from lazyfx_server.compiling.dispatch.native_executor import NativeExecutor
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.kernels.kernel_flights import KernelFlights
from lazyfx_server.execution import OnRestart
from lazyfx_server.jobs.native.work_area import WorkArea
from lazyfx_server.settings.pass_settings import NativeSettings
from lazyfx_server.telemetry import Observer
from lazyfx_server.workers.pools import Sources, native_pools


def local_natives(
    settings: NativeSettings,
    sources: Sources,
    crashes: CrashTracker,
    observer: Observer,
    on_restart: OnRestart,
    kernels: KernelFlights,
) -> tuple[LocalBuilders, NativeExecutor] | None:
    """What builds native artifacts on this machine; None if the settings turn that off.

    Args:
        settings: The settings of native compiles.
        sources: Start worker processes.
        crashes: Remembers graphs on which workers died.
        observer: Told of what happens.
        on_restart: Called for each replaced worker.
        kernels: Provides kernels that have been compiled before; not used for processes that are
            not confined, which could have changed what is compiled.

    Raises:
        NativeUnavailable: There is no C++ compiler, or the kernel lacks a layer.
    """
    pools = native_pools(settings, sources, on_restart)
    if pools is None:
        return None
    area, timeout = WorkArea(), settings.native_timeout
    shared = kernels if settings.shares_kernels else None
    builds = Builds(pools.builds, pools.compiler, timeout, area, observer, pools.owner, shared)
    executor = NativeExecutor(pools.jobs, pools.builds, builds, area, pools.owner)
    jobs = Jobs(executor, timeout, crashes, bounds="native", observer=observer)
    protection = pools.protection
    sandbox = pb.SandboxStatus(layers=protection.layers, missing=protection.missing)
    return LocalBuilders(executor, jobs, sandbox), executor
