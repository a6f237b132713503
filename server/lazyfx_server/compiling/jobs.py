"""Sends jobs to worker processes and turns what comes back into results or errors."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from lazyfx.errors import FieldViolation
from lazyfx_server.errors import (
    InternalError,
    InvalidRequestError,
    MissingError,
    OverloadedError,
    TimedOutError,
    UnmetError,
)
from lazyfx_server.execution import ExecutionError, Executor, WorkerTimedOut
from lazyfx_server.v1 import worker_pb2 as worker


class Jobs:
    """Typed calls into the executor.

    Args:
        executor: Runs the bytes of a job in a worker.
        timeout: Seconds that one job may take.
        setting: What the timeout is called among the settings.
    """

    def __init__(self, executor: Executor, timeout: float, setting: str = "job_timeout") -> None:
        self._executor = executor
        self._timeout = timeout
        self._setting = setting

    async def compile(self, job: worker.CompileJob) -> worker.CompileResult:
        """Run passes over a graph.

        Raises:
            RequestError: One of its kinds, by what the worker answered.
        """
        return (await self._run(worker.Job(compile=job))).compile

    async def render(self, job: worker.RenderJob) -> worker.RenderResult:
        """Render one artifact.

        Raises:
            RequestError: One of its kinds, by what the worker answered.
        """
        return (await self._run(worker.Job(render=job))).render

    async def describe(self) -> worker.DescribeResult:
        """Ask what devices workers see."""
        return (await self._run(worker.Job(describe=worker.DescribeJob()))).describe

    async def native(self, job: worker.NativeJob) -> worker.NativeResult:
        """Compile one graph to native code.

        Raises:
            RequestError: One of its kinds, by what the worker answered.
        """
        return (await self._run(worker.Job(native=job))).native

    async def describe_native(self, job: worker.DescribeNativeJob) -> worker.DescribeNativeResult:
        """Ask where native artifacts run.

        Raises:
            RequestError: They cannot be made; says why.
        """
        return (await self._run(worker.Job(describe_native=job))).describe_native

    async def _run(self, job: worker.Job) -> worker.JobResult:
        try:
            answer = await self._executor.run(job.SerializeToString(), timeout=self._timeout)
            result = worker.JobResult.FromString(answer)
        except WorkerTimedOut as error:
            raise TimedOutError(
                f"the job took longer than {self._timeout:g} s and was stopped; send a smaller "
                f"graph or fewer passes, or raise {self._setting}"
            ) from error
        except ExecutionError as error:
            raise InternalError(
                "the worker process died on this job; only this request failed"
            ) from error
        except DecodeError as error:
            raise InternalError("the worker answered with something unreadable") from error
        if result.WhichOneof("kind") == "error":
            _raise(result.error)
        elif result.WhichOneof("kind") != job.WhichOneof("kind"):
            raise InternalError("the worker answered another question")
        return result


def _raise(error: worker.JobError) -> None:
    """Raise the error that a worker reported."""
    if error.kind == worker.JOB_ERROR_KIND_INVALID:
        raise InvalidRequestError(
            error.message, [FieldViolation(error.field or "graph.body", error.message)]
        )
    if error.kind == worker.JOB_ERROR_KIND_LIMIT:
        raise OverloadedError(error.message)
    if error.kind == worker.JOB_ERROR_KIND_PRECONDITION:
        if error.missing:
            raise MissingError(error.message, error.missing)
        raise UnmetError(error.message)
    raise InternalError(error.message)
