"""The worker processes of a server: which kinds there are, and how each is confined."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

from lazyfx_server.execution import OnRestart, ProcessExecutor, ProcessSource
from lazyfx_server.jobs.graph_job import run_job
from lazyfx_server.jobs.native.confinement import (
    USER,
    Confinement,
    build_confinement,
    job_confinement,
    other_user,
)
from lazyfx_server.jobs.native.toolchain.build_job import run_compile_job
from lazyfx_server.jobs.native.toolchain.compiler import Compiler, CompilerMissing, find_compiler
from lazyfx_server.jobs.native.worker_entry import run_native_job
from lazyfx_server.security.sandbox import LAYERS, Policy, available, readable_paths
from lazyfx_server.settings.limits import WorkerLimits
from lazyfx_server.settings.pass_settings import NativeSettings
from lazyfx_server.settings.service_settings import WorkerSettings
from lazyfx_server.workers.confining import confine
from lazyfx_server.workers.starting import has_gpu, native_start_method

_log = logging.getLogger("lazyfx_server")

# Pass workers beyond the number of concurrent jobs, for tenants that take turns. With none, each
# change of tenant ends a process, and the next job waits for a new one.
_KEPT_WARM = 2


@dataclass(frozen=True)
class Sources:
    """How worker processes are started.

    Attributes:
        forked: Ready in milliseconds, but without GPUs: CUDA does not survive a fork.
        spawned: Ready in seconds, with the GPUs of the machine.
    """

    forked: ProcessSource
    spawned: ProcessSource


@dataclass(frozen=True)
class Protection:
    """How workers are confined.

    Attributes:
        layers: The active layers.
        missing: The inactive layers, because the kernel lacks them or the settings disable them.
    """

    layers: tuple[str, ...]
    missing: tuple[str, ...]


def protection(settings: WorkerSettings) -> Protection:
    """How pass workers are confined on this machine.

    Raises:
        OSError: The settings require more than the kernel supports.
    """
    layers = () if settings.sandbox == "off" else available()
    missing = tuple(layer for layer in LAYERS if layer not in layers)
    if missing and settings.sandbox == "required":
        raise OSError(
            f"this kernel lacks {', '.join(missing)}, and the setting sandbox is 'required'; use "
            "a newer kernel, allow these calls in the container, or use 'auto'"
        )
    if missing:
        _log.warning(
            "workers are not fully confined: without %s; a hostile graph that gets past the "
            "checks has the rights of this user",
            ", ".join(missing),
        )
    return Protection(layers, missing)


def pass_workers(
    settings: WorkerSettings,
    limits: WorkerLimits,
    sources: Sources,
    layers: tuple[str, ...],
    on_restart: OnRestart,
) -> ProcessExecutor:
    """Processes that run passes and render artifacts, each in its sandbox."""
    policy = Policy(layers, limits.worker_memory_bytes, readable_paths())
    return ProcessExecutor(
        run_job,
        processes=sources.forked,
        workers=settings.workers,
        kept_warm=_KEPT_WARM,
        max_jobs=settings.worker_max_jobs,
        initializer=partial(confine, policy),
        cancel_grace=0.0,
        cpu_seconds=limits.job_cpu_seconds,
        on_restart=on_restart,
    )


def native_protection(settings: NativeSettings) -> Protection:
    """How the processes of native compiles are confined on this machine.

    In addition to the layers of pass workers there is "user": another user, if the server is root.

    Raises:
        NativeUnavailable: A layer is missing, and the settings do not allow running without it.
    """
    user, why_not = other_user()
    held = () if settings.native_unconfined else available()
    missing = [layer for layer in LAYERS if layer not in held]
    if missing and not settings.native_unconfined:
        raise NativeUnavailable(
            f"this kernel lacks {', '.join(missing)}, and native compiles would not be confined; "
            "use a newer kernel, allow these calls in the container, or pass --native-unconfined"
        )
    if missing:
        _log.warning(
            "native compiles are not confined (--native-unconfined): a hostile graph that gets "
            "past the checks has the rights of this user; compiled kernels are not shared"
        )
    if user is not None and held:
        return Protection((*held, "user"), tuple(missing))
    if why_not and held:
        _log.warning("native compiles run as root: %s", why_not)
        missing.append("user")
    return Protection(held, tuple(missing))


class NativeUnavailable(Exception):  # noqa: N818 - reads as what happened
    """Native artifacts cannot be made here; the message says why and what to do."""


@dataclass(frozen=True)
class NativePools:
    """The processes of native compiles.

    Attributes:
        jobs: Read graphs and run Inductor, one job per process; they start no programs.
        builds: Run the C++ compiler, one source per process, and see no graphs.
        compiler: The C++ compiler.
        protection: How both are confined.
        owner: The user that owns their folders; None for the server's user.
    """

    jobs: ProcessExecutor
    builds: ProcessExecutor
    compiler: Compiler
    protection: Protection
    owner: int | None


def native_pools(
    settings: NativeSettings, sources: Sources, on_restart: OnRestart
) -> NativePools | None:
    """Processes for native compiles; None if the settings turn them off.

    Raises:
        NativeUnavailable: There is no C++ compiler, or the kernel lacks a layer.
    """
    if settings.native == "off":
        return None
    try:
        compiler = find_compiler()
    except CompilerMissing as error:
        raise NativeUnavailable(str(error)) from error
    protection = native_protection(settings)
    user = USER if "user" in protection.layers else None
    unconfined = settings.native_unconfined
    memory = settings.native_memory_bytes
    of_job = (
        Confinement(None)
        if unconfined
        else job_confinement(protection.layers, memory, user, compiler)
    )
    of_build = (
        Confinement(None)
        if unconfined
        else build_confinement(protection.layers, memory, user, compiler)
    )
    method = native_start_method(settings)
    jobs = ProcessExecutor(
        partial(run_native_job, compiler, of_job),
        processes=sources.spawned if method == "spawn" else sources.forked,
        workers=settings.native_workers,
        max_jobs=1,
        cancel_grace=0.0,
        cpu_seconds=settings.native_cpu_seconds,
        on_restart=on_restart,
    )
    builds = ProcessExecutor(
        partial(run_compile_job, compiler, of_build),
        processes=sources.forked,
        workers=settings.native_compile_threads,
        max_jobs=1,
        cancel_grace=0.0,
        cpu_seconds=settings.native_cpu_seconds,
    )
    return NativePools(jobs, builds, compiler, protection, user)


def device_worker(sources: Sources, on_restart: OnRestart) -> ProcessExecutor | None:
    """A process that only answers queries about devices, if there are GPUs."""
    if not has_gpu():
        return None
    return ProcessExecutor(run_job, processes=sources.spawned, workers=1, on_restart=on_restart)
