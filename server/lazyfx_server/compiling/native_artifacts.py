"""Native artifacts: which one a request means, whether it can be made here, and how far it is."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
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
from lazyfx_server.jobs.native.progress import read_progress
from lazyfx_server.jobs.native.work_area import WorkArea, remove
from lazyfx_server.telemetry import NativeCompiled, Observer, SourceRefused
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

# A compile that has run for less is not worth finishing when no caller waits for it.
_WORTH_KEEPING_SECONDS = 5.0


class NativeCompiles:
    """Runs native compiles in workers of their own.

    Args:
        jobs: Sends jobs to native workers; None when the server was started without them.
        builds: Answers what these jobs ask; None likewise.
        admission: Bounds that work.
        compile_threads: C++ compilers that one job may run at a time.
        observer: Is told of each compile.
        owner: User that folders of jobs belong to; None for the server's own.
        required: A server that cannot make native artifacts must not start.
    """

    def __init__(
        self,
        jobs: Jobs | None,
        builds: Builds | None,
        admission: Admission,
        compile_threads: int,
        observer: Observer,
        *,
        owner: int | None = None,
        required: bool = False,
    ) -> None:
        self._jobs = jobs
        self._builds = builds
        self._observer = observer
        self._admission = admission
        self._compile_threads = compile_threads
        self._owner = owner
        self._required = required
        self.unavailable_reason = "this server makes no native artifacts; start it with --native"
        self._area: WorkArea | None = None
        self._usual_seconds: dict[int, float] = {}
        self.target: pb.NativeTarget | None = None

    async def start(self) -> None:
        """Find out where artifacts of this machine run, which takes a compiler some seconds.

        Raises:
            OSError: They cannot be made, and are required.
        """
        if self._jobs is None or self._builds is None:
            return
        area = self._area = await asyncio.to_thread(WorkArea)
        self._builds.open(area)
        folder = area.folder("jobs", "describe", owner=self._owner)
        try:
            described = await self._jobs.describe_native(
                worker.DescribeNativeJob(cache=str(folder)), self._builds.session()
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
        self.unavailable_reason = f"this server cannot make native artifacts: {reason}"
        _log.warning("%s", self.unavailable_reason)

    def close(self) -> None:
        """Remove what compilers kept."""
        if self._area is not None:
            self._area.close()

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
            raise FailedPreconditionError(self.unavailable_reason)
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
        assert self._jobs is not None, "variant refuses before"
        assert self._builds is not None, "likewise"
        folder = self._folder_of(place)
        job = worker.NativeJob(
            kind=request.kind,
            graph=graph,
            request=request.native,
            cache=str(folder),
            progress=str(self._progress_file(place)),
            compile_threads=self._compile_threads,
            made_on=self.target,
        )
        ended = "failed"
        try:
            async with self._admission.slot(tenant):
                started = time.monotonic()
                flight.mark_running(lambda: self._grace_period(request.kind, started))
                session = self._builds.session()
                result = await self._jobs.native(job, subject, session)
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

    def _folder_of(self, place: bytes) -> Path:
        assert self._area is not None, "started"
        return self._area.folder("jobs", place.hex(), owner=self._owner)

    def _progress_file(self, place: bytes) -> Path:
        assert self._area is not None, "started"
        return self._area.root / "jobs" / place.hex() / "progress"
