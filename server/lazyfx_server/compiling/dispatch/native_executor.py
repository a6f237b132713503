"""The executor of native jobs on this machine: gives each a folder, and compiles C++ for it.

Whoever sends a native job, this server or another one through an engine, knows nothing of this
machine's folders, compilers and instruction sets; they are added here.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.dispatch.build_sessions import BuildSession
from lazyfx_server.compiling.dispatch.builds import Builds
from lazyfx_server.compiling.kernels.server_kernels import ServerKernels, server_kernels
from lazyfx_server.execution import Executor, JobBytes, OnCall
from lazyfx_server.execution.executor import parts_of
from lazyfx_server.execution.owned_folder import remove
from lazyfx_server.jobs.native.progress import progress_of, read_progress
from lazyfx_server.jobs.native.work_area import WorkArea
from lazyfx_server.v1 import worker_pb2 as worker


@dataclass(frozen=True, slots=True)
class _Running:
    """A job that runs: its folder and its builds."""

    folder: Path
    session: BuildSession


class NativeExecutor:
    """Runs serialized native jobs; see `Executor`.

    Args:
        jobs: The processes that run Inductor.
        compiles: The processes that run the C++ compiler.
        builds: Serves the build requests of jobs with them.
        area: The parent of the jobs' folders.
        owner: The user that owns the folders of jobs; None for this process's user.

    Attributes:
        target: Where artifacts built here run; None before it is known.
    """

    def __init__(
        self,
        jobs: Executor,
        compiles: Executor,
        builds: Builds,
        area: WorkArea,
        owner: int | None,
    ) -> None:
        self._jobs = jobs
        self._compiles = compiles
        self._builds = builds
        self._area = area
        self._owner = owner
        self._numbers = itertools.count(1)
        self._running: dict[str, _Running] = {}  # by place; the last one if it runs twice
        self._preparing: asyncio.Task[None] | None = None
        self.target: pb.NativeTarget | None = None

    @property
    def workers(self) -> int:
        """The number of jobs that can run at the same time."""
        return self._jobs.workers

    @property
    def shares_kernels(self) -> bool:
        """Whether what is compiled for one job can be used for others."""
        return self._builds.shares

    async def start(self) -> None:
        """Starts the processes; see `Executor.start`."""
        await asyncio.gather(self._jobs.start(), self._compiles.start(), self._builds.start())

    async def run(
        self,
        job: JobBytes,
        *,
        timeout: float,
        owner: str | None = None,
        on_call: OnCall | None = None,
    ) -> bytes:
        """Runs one job; see `Executor.run`.

        Its calls are answered here; with `on_call`, a server is asked for kernels.
        """
        message = worker.Job.FromString(b"".join(parts_of(job)))
        async with server_kernels(on_call) as elsewhere:
            return await self._run(message, timeout, owner, elsewhere)

    async def _run(
        self,
        message: worker.Job,
        timeout: float,
        owner: str | None,
        elsewhere: ServerKernels | None,
    ) -> bytes:
        place = message.native.place.hex() if message.HasField("native") else "describe"
        folder = self._area.folder("jobs", str(next(self._numbers)), owner=self._owner)
        if message.HasField("native"):
            message.native.cache = str(folder)
            message.native.progress = str(folder / "progress")
            if self.target is not None:
                message.native.made_on.CopyFrom(self.target)
            scoped = message.native.HasField("kernel_scope")
            session = self._builds.session(
                message.native.kernel_scope if scoped else None,
                elsewhere,
            )
            message.native.ClearField("kernel_scope")
        else:
            message.describe_native.cache = str(folder)
            session = self._builds.session()
        running = self._running[place] = _Running(folder, session)
        try:
            answer = await self._jobs.run(
                message.SerializeToString(), timeout=timeout, owner=owner, on_call=session
            )
            return await asyncio.to_thread(_checked, message.native.kind, answer, session)
        finally:
            if self._running.get(place) is running:
                del self._running[place]
            # Also removes what a killed job left behind.
            await asyncio.shield(asyncio.to_thread(remove, folder))

    def prepare(self, request: worker.BuildRequest) -> None:
        """Soon precompile the header of a build, which takes longer than the kernels of a job."""
        self._preparing = asyncio.ensure_future(self._builds.prepare(request))

    def progress(self, place: bytes) -> pb.ArtifactProgress:
        """The progress of the job with this name."""
        running = self._running.get(place.hex())
        if running is None:
            return progress_of(b"")
        told = read_progress(running.folder / "progress")
        kernels = running.session.kernels
        told.kernels, told.known_kernels = kernels.known + kernels.compiled, kernels.known
        if told.kernels and told.stage == "tracing":
            told.stage = "compiling"
        return told

    async def close(self) -> None:
        """Stops the processes, and removes their files."""
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.gather(self._preparing, return_exceptions=True)
        await asyncio.gather(self._jobs.close(), self._compiles.close())
        self._area.close()


def _checked(kind: int, answer: bytes, session: BuildSession) -> bytes:
    """The answer of a job with its counts, if each library in it was compiled here."""
    try:
        result = worker.JobResult.FromString(answer)
        if not result.HasField("native"):
            return answer
        made = result.native
        kernels: tuple[pb.NativeKernel, ...] = ()
        if kind == pb.ARTIFACT_KIND_INDUCTOR:
            kernels = tuple(pb.NativeBundle.FromString(made.data).kernels)
    except DecodeError:
        return answer  # refused by whoever reads it
    made.kernels.CopyFrom(session.kernels)
    if all(session.has_made(kernel.library) for kernel in kernels):
        return result.SerializeToString()
    error = worker.JobError(
        kind=worker.JOB_ERROR_KIND_SOURCE,
        message="the artifact contains a library that this server did not compile",
    )
    return worker.JobResult(error=error).SerializeToString()
