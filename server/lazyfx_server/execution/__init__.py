"""Executors run jobs outside the event loop, and know nothing about what the jobs do."""

from lazyfx_server.execution.answering import CallBounds
from lazyfx_server.execution.executor import (
    ExecutionError,
    Executor,
    ExecutorClosed,
    JobBytes,
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
from lazyfx_server.execution.job_calls import CallFailed, CallRefused, OnCall, call_server
from lazyfx_server.execution.launching import ProcessSource
from lazyfx_server.execution.process_executor import ProcessExecutor
from lazyfx_server.execution.spawn_source import SpawnSource

__all__ = [
    "CallBounds",
    "CallFailed",
    "CallRefused",
    "ExecutionError",
    "Executor",
    "ExecutorClosed",
    "ForkServer",
    "JobBytes",
    "JobFunction",
    "NoWorker",
    "OnCall",
    "OnRestart",
    "ProcessExecutor",
    "ProcessSource",
    "RestartReason",
    "ResultTooLarge",
    "SpawnSource",
    "WorkerCrashed",
    "WorkerFailed",
    "WorkerOutOfCpu",
    "WorkerTimedOut",
    "call_server",
    "start_forkserver",
]
