"""Native artifacts: which one a request means, whether it can be made here, and how far it is."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Sequence
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
from lazyfx_server.compiling.limits.admission import Admission
from lazyfx_server.compiling.single_flight import STOP_SECONDS, Flight
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

# A compile that has run for less is not worth finishing when no caller waits for it.
_WORTH_KEEPING_SECONDS = 5.0


@dataclass(frozen=True)
class NativeWorkers:
    """What native compiles run in.

    Attributes:
        executors: The processes.
        jobs: Sends jobs to those that run Inductor.
        builds: Answers what these jobs ask, with those that run the C++ compiler.
        area: Where both have their folders.
        owner: User that folders of jobs belong to; None for the server's own.
        compile_threads: C++ compilers that one job may run at a time.
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
    """Runs native compiles in workers of their own.

    Args:
        workers: The workers; None when no native artifacts can be made here, or none are wanted.
        admission: Bounds that work.
        observer: Is told of each compile.
        required: A server that cannot make native artifacts must not start.

    Attributes:
        target: Where artifacts of this server run; None before it is known, and when none are made.
        problem: Why none can be made here; empty when there is no problem.
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
        self._usual_seconds: dict[int, float] = {}
        self.target: pb.NativeTarget | None = None
        self.problem = ""

    @property
    def layers(self) -> Sequence[str]:
        """Layers of the sandbox of the workers; none without workers."""
        return () if self._workers is None else self._workers.sandbox.layers

    @property
    def status(self) -> pb.NativeStatus:
        """How native compiles are confined, or why there are none."""
        if self._workers is None or self.target is None:
            return pb.NativeStatus(unavailable=self._unavailable)
        return pb.NativeStatus(sandbox=self._workers.sandbox)

    @property
    def _unavailable(self) -> str:
        return self.problem or "this server makes no native artifacts; start it with --native"

    async def start(self) -> None:
        """Start the workers, and find out where their artifacts run, which takes some seconds.

        Raises:
            OSError: They cannot be made, and are required.
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
        """No native artifacts are made from now on."""
        self.problem = f"this server cannot make native artifacts: {reason}"
        _log.warning("%s", self.problem)

    async def close(self) -> None:
        """End the workers, and remove what they kept."""
        if self._workers is not None:
            await asyncio.gather(*(executor.close() for executor in self._workers.executors))
            self._workers.area.close()

    def variant(self, request: pb.GetArtifactRequest) -> bytes:
        """What tells native artifacts of one module apart, 32 bytes.

        Machines that run what is made here share an artifact, whatever else they can do.

        Raises:
            InvalidRequestError: The request does not say where the artifact will run, or has a
                setting or state that is not taken.
            FailedPreconditionError: What is made here does not run there; says why.
        """
        if not request.HasField("native"):
            raise InvalidRequestError.of_field(
                "native", "is missing; say where the artifact will run and under which settings"
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
        tenant: str,
        subject: Subject,
        flight: Flight[Any],
    ) -> worker.NativeResult:
        """Make one artifact.

        Args:
            place: Names the artifact.
            graph: The compiled graph.
            request: Checked by `variant`.
            tenant: Whose it is, to be fair between them.
            subject: What it is about.
            flight: Told when the compile begins.

        Raises:
            RequestError: One of its kinds, by what the worker answered.
        """
        assert self._workers is not None, "variant refuses before"
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
            async with self._admission.slot(tenant):
                started = time.monotonic()
                flight.mark_running(lambda: self._grace_period(request.kind, started))
                session = self._workers.builds.session()
                result = await self._workers.jobs.native(job, subject, session)
                await asyncio.to_thread(self._check_libraries, request.kind, result, session)
        except asyncio.CancelledError:
            ended = "stopped"
            raise
        else:
            ended = "only_traced" if result.only_traced else "made"
            if ended == "made":
                self._record_seconds(request.kind, time.monotonic() - started)
            return result
        finally:
            if flight.begun or ended != "stopped":
                self._observer.observe(NativeCompiled(ended))
            # Also what a job that was killed has left behind.
            await asyncio.to_thread(remove, folder)

    def _check_libraries(
        self, kind: int, result: worker.NativeResult, session: BuildSession
    ) -> None:
        """Check that each library of a bundle was compiled here, of a source that was read.

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
            raise InternalError("the artifact holds a library that this server did not compile")

    def _grace_period(self, kind: int, started: float) -> float:
        """How long an abandoned compile goes on: to its end, when it is nearly done.

        That is when it has run for some time, and for half of what such compiles usually take.
        """
        spent = time.monotonic() - started
        usual = self._usual_seconds.get(kind)
        if usual is not None and spent >= max(_WORTH_KEEPING_SECONDS, usual / 2):
            return math.inf
        return STOP_SECONDS

    def _record_seconds(self, kind: int, seconds: float) -> None:
        usual = self._usual_seconds.get(kind, seconds)
        self._usual_seconds[kind] = usual + 0.2 * (seconds - usual)

    def progress(self, place: bytes) -> pb.ArtifactProgress:
        """How far the making of an artifact is."""
        return read_progress(self._progress_file(place))

    def _progress_file(self, place: bytes) -> Path:
        assert self._workers is not None, "variant refuses before"
        return self._workers.area.root / "jobs" / place.hex() / "progress"
