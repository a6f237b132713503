"""Running jobs away from the event loop: executors, and nothing about what the jobs do."""

from lazyfx_server.execution.base import (
    ExecutionError,
    Executor,
    ExecutorClosed,
    JobFunction,
    NoWorker,
    OnRestart,
    RestartReason,
    ResultTooLarge,
    WorkerCrashed,
    WorkerFailed,
    WorkerOutOfCpu,
    WorkerTimedOut,
)
from lazyfx_server.execution.forkserver import ForkServer, start_forkserver
from lazyfx_server.execution.inline import InlineExecutor
from lazyfx_server.execution.interpreters import Interpreters
from lazyfx_server.execution.launching import ProcessSource
from lazyfx_server.execution.process import ProcessExecutor

__all__ = [
    "ExecutionError",
    "Executor",
    "ExecutorClosed",
    "ForkServer",
    "InlineExecutor",
    "Interpreters",
    "JobFunction",
    "NoWorker",
    "OnRestart",
    "ProcessExecutor",
    "ProcessSource",
    "RestartReason",
    "ResultTooLarge",
    "WorkerCrashed",
    "WorkerFailed",
    "WorkerOutOfCpu",
    "WorkerTimedOut",
    "start_forkserver",
]
