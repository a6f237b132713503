"""What runs the jobs of a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.assembling.event_counts import Counts
from lazyfx_server.assembling.store_parts import Storage
from lazyfx_server.compiling.dispatch.crashes import CrashTracker
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.kernels.kernel_flights import KernelFlights
from lazyfx_server.compiling.limits.admission import NATIVE_POOL, PASS_POOL, Admission
from lazyfx_server.compiling.limits.memory_guard import MemoryFiles, MemoryGuard
from lazyfx_server.compiling.native_artifacts import KernelSharing, NativeCompiles
from lazyfx_server.errors import UnavailableError
from lazyfx_server.execution import Executor, OnRestart, ProcessExecutor
from lazyfx_server.execution.ray_engine import RayEngine, RayExecutor
from lazyfx_server.memory_allocator import give_back_free_memory
from lazyfx_server.settings.model import Settings
from lazyfx_server.store import MemoryStore, TieredStore
from lazyfx_server.telemetry import Observer
from lazyfx_server.workers.devices import Devices
from lazyfx_server.workers.fallback import FallbackExecutor
from lazyfx_server.workers.local_pools import local_natives
from lazyfx_server.workers.pools import (
    NativeUnavailable,
    Sources,
    device_worker,
    pass_workers,
    protection,
)
from lazyfx_server.workers.ray_node import PASSES
from lazyfx_server.workers.ray_pools import RayBuilders, pass_sandbox, ray_engine


@dataclass(frozen=True)
class PassWorkers:
    """The workers that run passes.

    Attributes:
        executor: Sends jobs to them.
        sandbox: How they are confined.
        count: How many there are.
    """

    executor: Executor
    sandbox: Callable[[], pb.SandboxStatus]
    count: Callable[[], int]


@dataclass(frozen=True)
class Workers:
    """What runs jobs.

    Attributes:
        engine: Runs them on other machines; None if processes of this one do.
        passes: The workers that run passes.
        devices: What devices the workers see.
        device_worker: The worker of this machine that lists them; None with an engine.
        memory: Refuses work while the memory is nearly used up.
        jobs: Sends jobs to the workers that run passes.
        admission: The queue in front of these.
        native: Compiles native artifacts.
    """

    engine: RayEngine | None
    passes: PassWorkers
    devices: Devices
    device_worker: ProcessExecutor | None
    memory: MemoryGuard
    jobs: Jobs
    admission: Admission
    native: NativeCompiles

    @property
    def executors(self) -> list[Executor]:
        """What has to be started and closed, in this order."""
        lister = self.device_worker
        return [self.passes.executor, *([] if lister is None else [lister])]

    @classmethod
    def of(
        cls,
        settings: Settings,
        sources: Sources,
        added_targets: str,
        counts: Counts,
        storage: Storage,
    ) -> Workers:
        """Prepare the workers; none is started yet.

        Raises:
            OSError: The settings require what this machine does not have.
        """
        engine = ray_engine(settings, added_targets)
        restarted = counts.count_restart
        passes = pass_processes(settings, sources, engine, restarted)
        lister = None if engine is not None else device_worker(sources, restarted)
        crashes = CrashTracker(settings.workers.crash_refusal_seconds)
        timeout = settings.jobs.job_timeout
        guard = memory_guard(settings, storage.store, passes.executor)
        admission = Admission(
            settings.workers.workers,
            settings.calls,
            PASS_POOL,
            counts.observer,
            guard.refusal,
            longest=settings.jobs.job_timeout,
        )
        if engine is not None:
            engine.cluster.listen(lambda: admission.resize(max(1, passes.count())))
        return cls(
            engine=engine,
            passes=passes,
            devices=Devices(Jobs(lister or passes.executor, timeout)),
            device_worker=lister,
            memory=guard,
            jobs=Jobs(passes.executor, timeout, crashes, observer=counts.observer),
            admission=admission,
            native=native_compiles(
                settings,
                sources,
                engine,
                crashes,
                counts.observer,
                restarted,
                guard.refusal,
                storage.kernels,
            ),
        )


def pass_processes(
    settings: Settings, sources: Sources, engine: RayEngine | None, on_restart: OnRestart
) -> PassWorkers:
    """The workers that run passes: processes of this machine, or of the nodes of an engine.

    Raises:
        OSError: The settings require a stricter sandbox than this kernel supports.
    """
    if engine is not None:
        nodes = RayExecutor(engine, PASSES)
        if not settings.workers.executor_fallback:
            return PassWorkers(nodes, partial(pass_sandbox, engine), lambda: nodes.workers)
    held = protection(settings.workers)
    local = pass_workers(settings.workers, settings.jobs, sources, held.layers, on_restart)
    sandbox = pb.SandboxStatus(layers=held.layers, missing=held.missing)
    if engine is not None:
        both = FallbackExecutor(nodes, local)
        return PassWorkers(both, partial(pass_sandbox, engine, sandbox), lambda: both.workers)
    return PassWorkers(local, lambda: sandbox, lambda: len(local.pids))


def native_compiles(
    settings: Settings,
    sources: Sources,
    engine: RayEngine | None,
    crashes: CrashTracker,
    observer: Observer,
    on_restart: OnRestart,
    pressure: Callable[[], UnavailableError | None],
    kernels: KernelFlights,
) -> NativeCompiles:
    """The compiler of native artifacts.

    Args:
        settings: All settings.
        sources: Start worker processes.
        engine: Runs jobs elsewhere; None if worker processes of this machine do.
        crashes: Remembers graphs on which workers died.
        observer: Notified of each compile.
        on_restart: Called for each replaced worker.
        pressure: Returns why no new work is accepted at present, or None.
        kernels: Provides kernels that have been compiled before.

    Raises:
        OSError: Native artifacts are required but cannot be built.
    """
    native = settings.native
    required, forwards = native.native == "on", settings.upstream.upstream is not None

    sharing: KernelSharing = native.kernel_sharing if native.shares_kernels else "none"

    def make_queue(slots: int) -> Admission:
        longest = native.native_timeout
        return Admission(slots, settings.calls, NATIVE_POOL, observer, pressure, longest=longest)

    if engine is not None and native.native != "off":
        shared = kernels if native.shares_kernels else None
        nodes = RayBuilders(engine, native.native_timeout, crashes, observer, shared)
        compiles = NativeCompiles(nodes, make_queue, observer, forwards=forwards, sharing=sharing)
        engine.cluster.listen(compiles.count_workers)
        return compiles
    try:
        made = local_natives(native, sources, crashes, observer, on_restart, kernels)
    except NativeUnavailable as error:
        if required:
            raise OSError(f"--native: {error}") from error
        unavailable = NativeCompiles(None, make_queue, observer, forwards=forwards)
        unavailable.disable(str(error))
        return unavailable
    builders = None if made is None else made[0]
    return NativeCompiles(
        builders, make_queue, observer, required=required, forwards=forwards, sharing=sharing
    )


def memory_guard(
    settings: Settings, store: MemoryStore | TieredStore, executor: Executor
) -> MemoryGuard:
    """What refuses new work while the memory is nearly used up, and frees memory meanwhile."""

    def free_memory() -> None:
        store.trim()
        if isinstance(executor, ProcessExecutor | FallbackExecutor):
            executor.trim()
        give_back_free_memory()

    return MemoryGuard(MemoryFiles().read, settings.workers.memory_mark, free_memory)
