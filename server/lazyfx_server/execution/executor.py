"""What an executor is: something that runs jobs, bytes in and bytes out, away from the event loop.

::

    ExecutionError
    ├── WorkerCrashed     the worker process died under the job
    │   └── NoWorker          none took it
    ├── WorkerTimedOut    the job overran its time and was stopped
    │   └── WorkerOutOfCpu    it used up its processor seconds
    ├── WorkerFailed      the job raised; the worker lives on
    ├── ResultTooLarge    the job's result is over the bound; the worker lives on
    └── ExecutorClosed    the executor is closing or closed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from lazyfx_server.execution.job_calls import OnCall

JobFunction = Callable[[bytes], bytes]
"""What a worker runs. Importable by its qualified name, because workers import it."""

JobBytes = bytes | Sequence[bytes | memoryview]
"""A job, or its parts in their order: large ones are passed on without a copy."""

RestartReason = Literal["crash", "timeout", "recycled", "cancelled"]
"""Why a worker was replaced: it died, its job overran, it had served its jobs, or the
caller of its job went away and the job did not end by itself soon enough."""

OnRestart = Callable[[RestartReason], None]
"""Called in the event loop, once for each worker that is replaced."""


class ExecutionError(Exception):
    """Base of everything that goes wrong with a job outside of its own result."""


class WorkerCrashed(ExecutionError):  # noqa: N818 - reads as what happened
    """The worker died while it had the job, or no worker could be started for it."""


class NoWorker(WorkerCrashed):
    """No worker took the job: none could be started, or each died before. It is not to blame."""


class WorkerTimedOut(ExecutionError):  # noqa: N818 - reads as what happened
    """The job ran longer than its timeout; its worker was killed.

    Attributes:
        seconds: The timeout.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"the job ran longer than {seconds:g} s and was stopped")


class WorkerOutOfCpu(WorkerTimedOut):
    """The job used more processor seconds than it may; the kernel ended its worker.

    Attributes:
        seconds: The bound.
    """


class WorkerFailed(ExecutionError):  # noqa: N818 - reads as what happened
    """The job raised an exception that its function did not turn into a result.

    Attributes:
        type_name: Qualified name of the exception's class.
        message: Text of the exception, shortened to a few KiB.
    """

    def __init__(self, type_name: str, message: str) -> None:
        self.type_name = type_name
        self.message = message
        super().__init__(f"{type_name}: {message}" if message else type_name)


class ResultTooLarge(ExecutionError):  # noqa: N818 - reads as what happened
    """The job's result is larger than the executor passes on.

    Attributes:
        size: Bytes of the result.
        limit: Most bytes that the executor passes on.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(f"the result has {size} bytes; the limit is {limit}")


class ExecutorClosed(ExecutionError):  # noqa: N818 - reads as what happened
    """The executor does not take jobs any more."""


def parts_of(job: JobBytes) -> Sequence[bytes | memoryview]:
    """The parts of a job."""
    return [job] if isinstance(job, bytes) else job


class Executor(Protocol):
    """Runs jobs; each one alone in its worker."""

    @property
    def workers(self) -> int:
        """Jobs that can run at the same time."""

    async def start(self) -> None:
        """Gets the workers ready.

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

        Waits for a free worker first, for as long as that takes: how many may
        wait is the caller's business.

        Args:
            job: What the worker's function is called with, in one piece or in parts.
            timeout: Seconds that the job may run, counted from when a worker has it.
            owner: Whose job it is; no process runs jobs of two owners. None is the server's
                own, which may run in any.
            on_call: Answers calls that the job makes (`call_server`); they are cancelled when
                the job ends. Without it they are refused.

        Raises:
            WorkerFailed: The function raised.
            WorkerTimedOut: It ran longer than `timeout`.
            WorkerCrashed: It took its worker down.
            ResultTooLarge: It returned more bytes than are passed on.
            ExecutorClosed: `close` was called.
        """

    async def close(self) -> None:
        """Stops the workers, running jobs included. May be called twice."""
