"""Native artifacts: identifies them, checks whether they can be built, and compiles them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from lazyfx.shared.native.machine import mismatch
from lazyfx.shared.native.named_values import NamedValueError
from lazyfx.shared.native.native_request import check_request, conditions_digest
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.dispatch.builds import Builds, BuildSession
from lazyfx_server.compiling.dispatch.crashes import Subject
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.flights.single_flight import STOP_SECONDS, Flight
from lazyfx_server.compiling.limits.admission import Admission, QueuedJob
from lazyfx_server.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidRequestError,
    RequestError,
)
from lazyfx_server.execution import Executor
from lazyfx_server.jobs.native.progress import read_progress
from lazyfx_server.jobs.native.work_area import WorkArea, remove
from lazyfx_server.telemetry import NativeCompiled, Observer, SourceRefused
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

# A compile that has run for less than this is not worth finishing without a waiting caller.
_WORTH_KEEPING_SECONDS = 5.0


@dataclass(frozen=True)
class NativeWorkers:
    """The workers of native compiles.

    Attributes:
        executors: The processes.
        jobs: Sends jobs to those that run Inductor.
        builds: Serves the build requests of these jobs with the processes that run the C++
            compiler.
        area: The parent of the folders of both.
        owner: The user that owns the folders of jobs; None for the server's user.
        compile_threads: C++ compilers that one job may run concurrently.
        sandbox: How the processes are confined.
    """

    executors: Sequence[Executor]
    jobs: Jobs
    builds: Builds
    area: WorkArea
    owner: int | None
    compile_threads: int
    sandbox: pb.SandboxStatus


class NativeCompiles:
    """Runs native compiles in separate workers.

    Args:
        workers: The workers; None if native artifacts cannot be built or are turned off.
        admission: Bounds that work.
        observer: Notified of each compile.
        required: Whether the server must not start without native artifacts.

    Attributes:
        target: The target machine of artifacts; None before it is known, and if none are built.
        problem: Why none can be built here; empty if they can.
    """

    def __init__(
        self,
        workers: NativeWorkers | None,
        admission: Admission,
        observer: Observer,
        *,
        required: bool = False,
    ) -> None:
        self._workers = workers
        self._observer = observer
        self._admission = admission
        self._required = required
        self.target: pb.NativeTarget | None = None
        self.problem = ""

    @property
    def layers(self) -> Sequence[str]:
        """Active layers of the workers' sandbox; empty without workers."""
        return () if self._workers is None else self._workers.sandbox.layers

    @property
    def backlog_seconds(self) -> float:
        """Estimated seconds in which the workers would finish what they have."""
        return self._admission.backlog_seconds

    @property
    def status(self) -> pb.NativeStatus:
        """How native compiles are confined, or why they are unavailable."""
        if self._workers is None or self.target is None:
            return pb.NativeStatus(unavailable=self._unavailable)
        return pb.NativeStatus(sandbox=self._workers.sandbox)

    @property
    def _unavailable(self) -> str:
        return self.problem or "this server builds no native artifacts; start it with --native"

    async def start(self) -> None:
        """Start the workers, and determine the target of their artifacts, which takes seconds.

        Raises:
            OSError: They are required but cannot be built.
        """
        workers = self._workers
        if workers is None:
            return
        await asyncio.gather(*(executor.start() for executor in workers.executors))
        folder = workers.area.folder("jobs", "describe", owner=workers.owner)
        try:
            described = await workers.jobs.describe_native(
                worker.DescribeNativeJob(cache=str(folder)), workers.builds.session()
            )
        except RequestError as error:
            self.disable(str(error))
            if self._required:
                raise OSError(f"--native: {error}") from error
        else:
            self.target = described.target
        finally:
            await asyncio.to_thread(remove, folder)

    def disable(self, reason: str) -> None:
        """Turn native artifacts off from now on."""
        self.problem = f"this server cannot build native artifacts: {reason}"
        _log.warning("%s", self.problem)

    async def close(self) -> None:
        """Stop the workers, and remove their files."""
        if self._workers is not None:
            await asyncio.gather(*(executor.close() for executor in self._workers.executors))
            self._workers.area.close()

    def variant(self, request: pb.GetArtifactRequest) -> bytes:
        """A digest that distinguishes native artifacts of one module, 32 bytes.

        All machines that can run this server's artifacts share one, whatever their other features.

        Raises:
            InvalidRequestError: The request does not say where the artifact will run, or has an
                invalid setting or state.
            FailedPreconditionError: This server's artifacts do not run there; says why.
        """
        if not request.HasField("native"):
            raise InvalidRequestError.of_field(
                "native", "is missing; specify where the artifact will run and with which settings"
            )
        if self.target is None:
            raise FailedPreconditionError(self._unavailable)
        try:
            check_request(request.native)
        except NamedValueError as error:
            raise InvalidRequestError.of_field(error.field, error.reason) from error
        wanted = request.native.target
        if why := mismatch(self.target, wanted):
            raise FailedPreconditionError(
                f"a native artifact of this server would not run there: {why}"
            )
        made = pb.NativeTarget()
        made.CopyFrom(self.target)
        made.accelerator = wanted.accelerator
        digest = hashlib.sha256(made.SerializeToString(deterministic=True))
        digest.update(conditions_digest(request.native))
        return digest.digest()

    async def make(
        self,
        place: bytes,
        graph: graph_pb2.CompiledGraph,
        request: pb.GetArtifactRequest,
        queued_job: QueuedJob,
        subject: Subject,
        flight: Flight[Any],
        charge: AbstractContextManager[None],
    ) -> worker.NativeResult:
        """Compile one artifact.

        Args:
            place: The store key of the artifact.
            graph: The compiled graph.
            request: Checked by `variant`.
            queued_job: The job, for fair queueing.
            subject: The subject of the job.
            flight: Notified when the compile begins.
            charge: Charges the tenant for the time within it; the wait for a slot is not charged.

        Raises:
            RequestError: A subclass, depending on the worker's answer.
        """
        assert self._workers is not None, "refused by `variant`"
        folder = self._workers.area.folder("jobs", place.hex(), owner=self._workers.owner)
        job = worker.NativeJob(
            kind=request.kind,
            graph=graph,
            request=request.native,
            cache=str(folder),
            progress=str(self._progress_file(place)),
            compile_threads=self._workers.compile_threads,
            made_on=self.target,
        )
        ended = "failed"
        try:
            async with self._admission.slot(queued_job):
                started = time.monotonic()
                flight.mark_running(lambda: self._grace_period(queued_job, started))
                session = self._workers.builds.session()
                with charge:
                    result = await self._workers.jobs.native(job, subject, session)
                await asyncio.to_thread(self._check_libraries, request.kind, result, session)
        except asyncio.CancelledError:
            ended = "stopped"
            raise
        else:
            ended = "only_traced" if result.only_traced else "made"
            return result
        finally:
            if flight.begun or ended != "stopped":
                self._observer.observe(NativeCompiled(ended))
            # Also removes what a killed job left behind.
            await asyncio.to_thread(remove, folder)

    def _check_libraries(
        self, kind: int, result: worker.NativeResult, session: BuildSession
    ) -> None:
        """Check that each library of a bundle was compiled here, from checked source.

        Raises:
            InternalError: One was not, or the bundle cannot be read.
        """
        if kind != pb.ARTIFACT_KIND_INDUCTOR:
            return
        try:
            kernels = pb.NativeBundle.FromString(result.data).kernels
        except DecodeError as error:
            raise InternalError("the worker answered with something unreadable") from error
        if not all(session.has_made(kernel.library) for kernel in kernels):
            self._observer.observe(SourceRefused("native"))
            _log.error("a native job returned a library that was not compiled here")
            raise InternalError("the artifact contains a library that this server did not compile")

    def _grace_period(self, queued_job: QueuedJob, started: float) -> float:
        """How long an abandoned compile continues: to its end, if it is nearly done.

        That is if it has run for some time, and for half of the usual duration.
        """
        spent = time.monotonic() - started
        usual = self._admission.usual_seconds(queued_job.kind)
        if usual is not None and spent >= max(_WORTH_KEEPING_SECONDS, usual / 2):
            return math.inf
        return STOP_SECONDS

    def progress(self, place: bytes) -> pb.ArtifactProgress:
        """The progress of a native compile."""
        return read_progress(self._progress_file(place))

    def _progress_file(self, place: bytes) -> Path:
        assert self._workers is not None, "refused by `variant`"
        return self._workers.area.root / "jobs" / place.hex() / "progress"
