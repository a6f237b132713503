"""Sends jobs to worker processes, and turns their answers into results or errors."""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias, cast

from google.protobuf.message import DecodeError

from lazyfx_server.compiling.dispatch.crashes import CrashTracker, Subject
from lazyfx_server.compiling.dispatch.job_parts import CompileParts
from lazyfx_server.compiling.dispatch.result_checks import check_compile_result, check_render_result
from lazyfx_server.errors import (
    CrashingGraphError,
    DrainingError,
    FailedPreconditionError,
    InternalError,
    InvalidRequestError,
    MissingInputsError,
    OverloadedError,
    RequestError,
    TimedOutError,
    UnavailableError,
)
from lazyfx_server.execution import (
    ExecutionError,
    Executor,
    ExecutorClosed,
    JobBytes,
    NoWorker,
    WorkerCrashed,
    WorkerOutOfCpu,
    WorkerTimedOut,
)
from lazyfx_server.telemetry import (
    Event,
    GraphJob,
    GraphRefused,
    JobRetried,
    Observer,
    SourceRefused,
)
from lazyfx_server.v1 import worker_pb2 as worker

_Kind: TypeAlias = Literal["compile", "render", "native", "check", "describe", "describe_native"]


class Jobs:
    """Typed calls into the executor.

    Args:
        executor: Runs the bytes of a job in a worker.
        timeout: Seconds that one job may take.
        crashes: Remembers graphs on which workers died; optional.
        bounds: Which settings bound them: `job` for job_timeout and job_cpu_seconds, or `native`.
        observer: Notified of sources that differed from their graphs, of retries and of refusals.
    """

    def __init__(
        self,
        executor: Executor,
        timeout: float,
        crashes: CrashTracker | None = None,
        bounds: Literal["job", "native"] = "job",
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self._crashes = CrashTracker(0.0) if crashes is None else crashes
        self._executor = executor
        self._timeout = timeout
        self._bounds = bounds

    async def compile(
        self, job: CompileParts, owner: str, subject: Subject
    ) -> worker.CompileResult:
        """Run passes over a graph of this owner.

        Raises:
            RequestError: A subclass, depending on the worker's answer.
        """
        result = (await self._run("compile", job.serialized(), owner, subject)).compile
        await check_compile_result(result)
        return result

    async def render(
        self, job: worker.RenderJob, owner: str, subject: Subject
    ) -> worker.RenderResult:
        """Render one artifact of this owner.

        Raises:
            RequestError: A subclass, depending on the worker's answer.
        """
        data = worker.Job(render=job).SerializeToString()
        result = (await self._run("render", data, owner, subject)).render
        check_render_result(job, result)
        return result

    async def check(self, job: worker.CheckJob) -> None:
        """Check a compiled graph that another server sent.

        Raises:
            RequestError: A subclass: it is not allowed, or could not be checked.
        """
        await self._run("check", worker.Job(check=job).SerializeToString())

    async def describe(self) -> worker.DescribeResult:
        """Query the devices that workers see."""
        data = worker.Job(describe=worker.DescribeJob()).SerializeToString()
        return (await self._run("describe", data)).describe

    async def native(self, job: worker.NativeJob, subject: Subject) -> worker.NativeResult:
        """Compile one graph to native code.

        Raises:
            RequestError: A subclass, depending on the worker's answer.
        """
        data = worker.Job(native=job).SerializeToString()
        return (await self._run("native", data, subject=subject)).native

    async def describe_native(self) -> worker.DescribeNativeResult:
        """Query the target machine of native artifacts.

        Raises:
            RequestError: They cannot be built; says why.
        """
        data = worker.Job(describe_native=worker.DescribeNativeJob()).SerializeToString()
        return (await self._run("describe_native", data)).describe_native

    async def _run(
        self,
        kind: _Kind,
        job: JobBytes,
        owner: str | None = None,
        subject: Subject | None = None,
    ) -> worker.JobResult:
        try:
            answer = await self._run_on_worker(kind, job, owner, subject)
            result = worker.JobResult.FromString(answer)
        except WorkerOutOfCpu as error:
            raise TimedOutError(
                f"the job used more than {error.seconds:g} CPU seconds and was stopped; send "
                f"a smaller graph or fewer passes, or raise {self._bounds}_cpu_seconds"
            ) from error
        except WorkerTimedOut as error:
            raise TimedOutError(
                f"the job took longer than {self._timeout:g} s and was stopped; send a smaller "
                f"graph or fewer passes, or raise {self._bounds}_timeout"
            ) from error
        except NoWorker as error:
            raise UnavailableError(f"no worker process took the job: {error}; try again") from error
        except ExecutorClosed as error:
            raise DrainingError("the server is shutting down; try again later") from error
        except ExecutionError as error:
            raise InternalError(
                "the worker process died on this job; only this request failed"
            ) from error
        except DecodeError as error:
            raise InternalError("the worker answered with something unreadable") from error
        if result.WhichOneof("kind") == "error":
            if result.error.kind == worker.JOB_ERROR_KIND_SOURCE:
                self._observe(SourceRefused(cast("GraphJob", kind)))
            _raise(result.error)
        elif result.WhichOneof("kind") != kind:
            raise InternalError("the worker answered a different request")
        return result

    async def _run_on_worker(
        self,
        kind_of_job: _Kind,
        job: JobBytes,
        owner: str | None,
        subject: Subject | None,
    ) -> bytes:
        """Run a job; if it is about a graph and its worker dies, retry it once on another worker.

        A job that used up its CPU time would do so again: it fails at once, and counts as a death.
        One that exceeded its time limit may have been on a busy machine, and does not count.

        Raises:
            CrashingGraphError: Workers have died on its graph.
            ExecutionError: As in `Executor.run`.
        """
        run = partial(self._executor.run, job, timeout=self._timeout, owner=owner)
        if subject is None:
            return await run()
        kind = cast("GraphJob", kind_of_job)  # others have no subject
        for is_last in (False, True):
            self._check_crashes(kind, subject)
            if is_last:
                self._observe(JobRetried(kind))
            try:
                answer = await run()
            except NoWorker:
                raise
            except (WorkerCrashed, WorkerOutOfCpu) as error:
                self._crashes.record_death(kind, subject, str(error))
                if isinstance(error, WorkerOutOfCpu):
                    raise
                if is_last:
                    self._observe(GraphRefused(kind))
                    raise self._crashes.refusal(kind, subject) from error
            else:
                self._crashes.record_survival(kind, subject)
                return answer
        raise AssertionError("the last attempt returns or raises")

    def _check_crashes(self, kind: GraphJob, subject: Subject) -> None:
        try:
            self._crashes.check(kind, subject)
        except CrashingGraphError:
            self._observe(GraphRefused(kind))
            raise

    def _observe(self, event: Event) -> None:
        if self._observer is not None:
            self._observer.observe(event)


_ERRORS: dict[int, type[RequestError]] = {
    worker.JOB_ERROR_KIND_INVALID: InvalidRequestError,
    worker.JOB_ERROR_KIND_LIMIT: OverloadedError,
    worker.JOB_ERROR_KIND_PRECONDITION: FailedPreconditionError,
}


def _raise(error: worker.JobError) -> None:
    """Raise the error that a worker reported."""
    if error.missing:
        raise MissingInputsError(error.message, error.missing)
    kind = _ERRORS.get(error.kind, InternalError)
    field = error.field or ("graph.body" if kind is InvalidRequestError else "")
    if not field:
        raise kind(error.message)
    raise kind.of_field(field, error.message, error.node)
