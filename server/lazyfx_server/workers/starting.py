"""What worker processes import before their first job, and the environment that they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from lazyfx_server.settings.pass_settings import NativeSettings
from lazyfx_server.settings.service_settings import WorkerSettings
from lazyfx_server.telemetry.plain_text import LOG_FORMAT_VARIABLE

# Exists if the machine has an NVIDIA GPU.
_GPU: Final = Path("/dev/nvidiactl")


def has_gpu() -> bool:
    """Whether the machine has an NVIDIA GPU."""
    return _GPU.exists()


def native_start_method(settings: NativeSettings) -> Literal["forkserver", "spawn"]:
    """How the workers of native compiles are started on this machine."""
    if settings.native_start_method == "auto":
        return "spawn" if has_gpu() else "forkserver"
    return settings.native_start_method


@dataclass(frozen=True)
class WorkerStart:
    """How worker processes begin.

    Attributes:
        preload: Modules to import.
        prepared: Modules that only a process imports from which many are forked.
        environment: Variables to set before.
    """

    preload: Sequence[str]
    prepared: Sequence[str]
    environment: Mapping[str, str]

    @property
    def fork_preload(self) -> Sequence[str]:
        """The modules that a fork server imports."""
        return [*self.preload, *self.prepared]

    @property
    def without_gpus(self) -> Mapping[str, str]:
        """The environment of a fork server.

        torch queries devices when it creates its first fake tensor, and a process forked after that
        cannot use them, so it must see none.
        """
        return {**self.environment, "CUDA_VISIBLE_DEVICES": ""}


def worker_start(
    workers: WorkerSettings,
    native: NativeSettings,
    operator_modules: Sequence[str],
    added_targets: str,
    log_format: str,
) -> WorkerStart:
    """How the workers of a server begin, on its machine or on another.

    Args:
        workers: Their settings.
        native: The settings of native compiles.
        operator_modules: Modules that register custom operators.
        added_targets: The file of added targets; empty without one.
        log_format: The format of log lines.
    """
    threads = str(workers.worker_threads)
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    environment[LOG_FORMAT_VARIABLE] = log_format
    if added_targets:
        from lazyfx_server.security import allowed

        environment[allowed.VARIABLE] = added_targets
    preload = [*operator_modules, "lazyfx_server.jobs.preload"]
    prepared = []
    if native.native != "off":
        preload.append("lazyfx_server.jobs.native.ahead.inductor_preload")
        if native_start_method(native) == "forkserver":
            prepared.append("lazyfx_server.jobs.native.ahead.prepared_inductor")
        # Inductor starts its own processes on import unless it is limited to one thread.
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return WorkerStart(preload, prepared, environment)
