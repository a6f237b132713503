"""Sends jobs to worker processes and turns what comes back into results or errors."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from lazyfx.errors import FieldViolation
from lazyfx_server.compiling.validation import check_compiled, check_rendered
from lazyfx_server.errors import (
    InternalError,
    InvalidRequestError,
    MissingError,
    OverloadedError,
    TimedOutError,
    UnmetError,
)
from lazyfx_server.execution import ExecutionError, Executor, OnCall, WorkerOutOfCpu, WorkerTimedOut
from lazyfx_server.telemetry import Observer, SourceRefused
from lazyfx_server.v1 import worker_pb2 as worker


class Jobs:
    """Typed calls into the executor.

    Args:
        executor: Runs the bytes of a job in a worker.
        timeout: Seconds that one job may take.
        setting: What the timeout is called among the settings.
        observer: Is told of sources that differed from their graphs.
    """

    def __init__(
        self,
        executor: Executor,
        timeout: float,
        setting: str = "job_timeout",
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self._executor = executor
        self._timeout = timeout
        self._setting = setting

    async def compile(self, job: worker.CompileJob, owner: str) -> worker.CompileResult:
        """Run passes over a graph of this owner.

        Raises:
            RequestError: One of its kinds, by what the worker answered.
        """
        result = (await self._run(worker.Job(compile=job), owner)).compile
        await check_compiled(result)
        return result

    async def render(self, job: worker.RenderJob, owner: str) -> worker.RenderResult:
        """Render one artifact of this owner.

        Raises:
            RequestError: One of its kinds, by what the worker answered.
        """
        result = (await self._run(worker.Job(render=job), owner)).render
        check_rendered(job, result)
        return result

    async def describe(self) -> worker.DescribeResult:
        """Ask what devices workers see."""
        return (await self._run(worker.Job(describe=worker.DescribeJob()))).describe

    async def native(self, job: worker.NativeJob, on_call: OnCall) -> worker.NativeResult:
        """Compile one graph to native code; `on_call` compiles C++ for it.

        Raises:
            RequestError: One of its kinds, by what the worker answered.
        """
        return (await self._run(worker.Job(native=job), on_call=on_call)).native

    async def describe_native(
        self, job: worker.DescribeNativeJob, on_call: OnCall
    ) -> worker.DescribeNativeResult:
        """Ask where native artifacts run.

        Raises:
            RequestError: They cannot be made; says why.
        """
        result = await self._run(worker.Job(describe_native=job), on_call=on_call)
        return result.describe_native

    async def _run(
        self, job: worker.Job, owner: str | None = None, on_call: OnCall | None = None
    ) -> worker.JobResult:
        data = job.SerializeToString()
        try:
            answer = await self._executor.run(
                data, timeout=self._timeout, owner=owner, on_call=on_call
            )
            result = worker.JobResult.FromString(answer)
        except WorkerOutOfCpu as error:
            raise TimedOutError(
                f"the job used more than {error.seconds:g} processor seconds and was stopped; send "
                "a smaller graph or fewer passes, or raise job_cpu_seconds"
            ) from error
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
            if result.error.kind == worker.JOB_ERROR_KIND_SOURCE and self._observer is not None:
                self._observer.observe(SourceRefused(job.WhichOneof("kind") or ""))
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
