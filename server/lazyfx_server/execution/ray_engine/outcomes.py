"""How jobs end, as data that passes through Ray."""

from __future__ import annotations

from typing import Any

from lazyfx_server.execution.executor import (
    ExecutionError,
    ExecutorClosed,
    NoWorker,
    ResultTooLarge,
    WorkerCrashed,
    WorkerFailed,
    WorkerOutOfCpu,
    WorkerTimedOut,
)


def pack_outcome(error: ExecutionError) -> dict[str, Any]:
    """An error of an executor, for JSON."""
    if isinstance(error, WorkerFailed):
        return {"kind": "failed", "type": error.type_name, "message": error.message}
    if isinstance(error, WorkerTimedOut):
        kind = "out_of_cpu" if isinstance(error, WorkerOutOfCpu) else "timed_out"
        return {"kind": kind, "seconds": error.seconds}
    if isinstance(error, ResultTooLarge):
        return {"kind": "too_large", "size": error.size, "limit": error.limit}
    if isinstance(error, NoWorker):
        return {"kind": "no_worker", "message": str(error)}
    if isinstance(error, ExecutorClosed):
        return {"kind": "no_worker", "message": "the node is stopping"}
    return {"kind": "crashed", "message": str(error)}


def unpack_outcome(facts: dict[str, Any]) -> ExecutionError:
    """The error that `pack_outcome` was given."""
    kind = facts.get("kind")
    if kind == "failed":
        return WorkerFailed(str(facts["type"]), str(facts["message"]))
    if kind == "timed_out":
        return WorkerTimedOut(float(facts["seconds"]))
    if kind == "out_of_cpu":
        return WorkerOutOfCpu(float(facts["seconds"]))
    if kind == "too_large":
        return ResultTooLarge(int(facts["size"]), int(facts["limit"]))
    if kind == "no_worker":
        return NoWorker(str(facts["message"]))
    return WorkerCrashed(str(facts.get("message", "the worker ended")))
