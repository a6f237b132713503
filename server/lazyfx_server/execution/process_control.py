"""Starts the process of a worker, bounds its CPU time, and reads how it ended."""

from __future__ import annotations

import math
import os
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from lazyfx_server.execution.answering import CallBounds
from lazyfx_server.execution.executor import JobFunction
from lazyfx_server.execution.launching import ProcessSource
from lazyfx_server.execution.worker_loop import serve


@dataclass(frozen=True)
class WorkerSpec:
    """How to start a worker process.

    Attributes:
        function: What runs a job; importable.
        initializer: Called once in the worker before its first job; importable.
        max_result_bytes: Largest result that the worker sends.
        start_timeout: Seconds until a new worker must be ready.
        cpu_seconds: CPU seconds that one job may use; None for no bound.
        calls: Bounds on the calls that a job makes.
    """

    function: JobFunction
    initializer: Callable[[], None] | None
    max_result_bytes: int
    start_timeout: float
    cpu_seconds: float | None = None
    calls: CallBounds = field(default_factory=CallBounds)


def spawn(processes: ProcessSource, connection: socket.socket, spec: WorkerSpec) -> BaseProcess:
    """Start the process of a worker; blocks.

    Args:
        processes: Starts it.
        connection: Its end of the socket, which is closed here.
        spec: How to start it.

    Raises:
        OSError, EOFError: It cannot be started.
    """
    arguments = (connection, spec.function, spec.initializer, spec.max_result_bytes)
    with connection:
        return processes.spawn(serve, arguments)


def bound_cpu(pid: int, seconds: float) -> None:
    """Let a process use this many more CPU seconds; then the kernel kills it.

    Set from outside, so that whatever a job runs cannot change it.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        bound = math.ceil(used + seconds)
        resource.prlimit(pid, resource.RLIMIT_CPU, (bound, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return  # it has just exited, which is detected elsewhere; or this is not Linux


def ending(exitcode: int | None) -> str:
    """How a process ended, by its exit status; None if that is not known."""
    if exitcode is None or exitcode == 255:  # 255: the fork server does not know
        return "ended"
    if exitcode >= 0:
        return f"exited with status {exitcode}"
    try:
        return f"was killed by {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"was killed by signal {-exitcode}"
