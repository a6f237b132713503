"""The interface of an executor: it runs jobs, bytes in and bytes out, outside the event loop.

::

    ExecutionError
    ├── WorkerCrashed     the worker process died while it ran the job
    │   └── NoWorker          no worker took the job
    ├── WorkerTimedOut    the job overran its time and was stopped
    │   └── WorkerOutOfCpu    the job used up its CPU time
    ├── WorkerFailed      the job raised; the worker keeps running
    ├── ResultTooLarge    the job's result is too large; the worker keeps running
    └── ExecutorClosed    the executor is closing or closed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from lazyfx_server.execution.job_calls import OnCall

JobFunction = Callable[[bytes], bytes]
"""What a worker runs. Importable by its qualified name, because workers import it."""

JobBytes = bytes | Sequence[bytes | memoryview]
"""A job, or its parts in order: large parts are passed on without a copy."""

RestartReason = Literal["crash", "timeout", "recycled", "cancelled"]
"""Why a worker was replaced: it died, its job timed out, it had run `max_jobs` jobs, or the
caller of its job went away and the job did not finish in time."""

OnRestart = Callable[[RestartReason], None]
"""Called in the event loop once per replaced worker."""


class ExecutionError(Exception):
    """Base class of failures to run a job."""


class WorkerCrashed(ExecutionError):  # noqa: N818 - reads as what happened
    """The worker died while it had the job, or no worker could be started."""


class NoWorker(WorkerCrashed):
    """No worker took the job: none could be started, or each died first. Not the job's fault."""


class WorkerTimedOut(ExecutionError):  # noqa: N818 - reads as what happened
    """The job ran longer than its timeout; its worker was killed.

    Attributes:
        seconds: The timeout.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"the job ran longer than {seconds:g} s and was stopped")


class WorkerOutOfCpu(WorkerTimedOut):
    """The job exceeded its CPU time; the kernel killed its worker.

    Attributes:
        seconds: The bound.
    """


class WorkerFailed(ExecutionError):  # noqa: N818 - reads as what happened
    """The job function raised an exception.

    Attributes:
        type_name: Qualified name of the exception's class.
        message: Text of the exception, truncated to a few KiB.
    """

    def __init__(self, type_name: str, message: str) -> None:
        self.type_name = type_name
        self.message = message
        super().__init__(f"{type_name}: {message}" if message else type_name)


class ResultTooLarge(ExecutionError):  # noqa: N818 - reads as what happened
    """The job's result is larger than the executor passes on.

    Attributes:
        size: Bytes of the result.
        limit: The executor's limit in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(f"the result has {size} bytes; the limit is {limit}")


class ExecutorClosed(ExecutionError):  # noqa: N818 - reads as what happened
    """The executor no longer takes jobs."""


def parts_of(job: JobBytes) -> Sequence[bytes | memoryview]:
    """The parts of a job."""
    return [job] if isinstance(job, bytes) else job


class Executor(Protocol):
    """Runs jobs, one at a time per worker."""

    @property
    def workers(self) -> int:
        """The number of jobs that can run at the same time."""

    async def start(self) -> None:
        """Starts the workers and waits until they are ready.

        Raises:
            WorkerCrashed: A worker could not be started.
        """

    async def run(
        self,
        job: JobBytes,
        *,
        timeout: float,
        owner: str | None = None,
        on_call: OnCall | None = None,
    ) -> bytes:
        """Runs one job and returns its result.

        Waits for a free worker without a time limit; bounding the number of waiters is up to the
        caller.

        Args:
            job: What the worker's function is called with, in one piece or in parts.
            timeout: Seconds that the job may run, from the moment a worker takes it.
            owner: The owner of the job; no process runs jobs of two owners. None means the server
                itself, whose jobs may run in any process.
            on_call: Answers calls that the job makes (`call_server`); they are cancelled when
                the job ends. Without it they are refused.

        Raises:
            WorkerFailed: The function raised.
            WorkerTimedOut: It ran longer than `timeout`.
            WorkerCrashed: Its worker died.
            ResultTooLarge: Its result exceeds the limit.
            ExecutorClosed: `close` was called.
        """

    async def close(self) -> None:
        """Stops the workers, running jobs included. May be called twice."""
