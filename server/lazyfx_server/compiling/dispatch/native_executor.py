"""The executor of native jobs on this machine: gives each a folder, and compiles C++ for it.

Whoever sends a native job, this server or another one through an engine, knows nothing of this
machine's folders, compilers and instruction sets; they are added here.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from google.protobuf.message import DecodeError

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.dispatch.builds import Builds, BuildSession
from lazyfx_server.execution import Executor, JobBytes, OnCall
from lazyfx_server.execution.executor import parts_of
from lazyfx_server.jobs.native.progress import read_progress
from lazyfx_server.jobs.native.work_area import WorkArea, remove
from lazyfx_server.v1 import worker_pb2 as worker


class NativeExecutor:
    """Runs serialized native jobs; see `Executor`.

    Args:
        jobs: The processes that run Inductor.
        compiles: The processes that run the C++ compiler.
        builds: Serves the build requests of jobs with them.
        area: The parent of the jobs' folders.
        compile_threads: C++ compilers that one job may run concurrently.
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
        compile_threads: int,
        owner: int | None,
    ) -> None:
        self._jobs = jobs
        self._compiles = compiles
        self._builds = builds
        self._area = area
        self._compile_threads = compile_threads
        self._owner = owner
        self.target: pb.NativeTarget | None = None

    @property
    def workers(self) -> int:
        """The number of jobs that can run at the same time."""
        return self._jobs.workers

    async def start(self) -> None:
        """Starts the processes; see `Executor.start`."""
        await asyncio.gather(self._jobs.start(), self._compiles.start())

    async def run(
        self,
        job: JobBytes,
        *,
        timeout: float,
        owner: str | None = None,
        on_call: OnCall | None = None,
    ) -> bytes:
        """Runs one job; see `Executor.run`. Its calls are answered here, so `on_call` is unused."""
        del on_call
        message = worker.Job.FromString(b"".join(parts_of(job)))
        place = message.native.place.hex() if message.HasField("native") else "describe"
        folder = self._area.folder("jobs", place, owner=self._owner)
        if message.HasField("native"):
            message.native.cache = str(folder)
            message.native.progress = str(folder / "progress")
            message.native.compile_threads = self._compile_threads
            if self.target is not None:
                message.native.made_on.CopyFrom(self.target)
        else:
            message.describe_native.cache = str(folder)
        session = self._builds.session()
        try:
            answer = await self._jobs.run(
                message.SerializeToString(), timeout=timeout, owner=owner, on_call=session
            )
            return await asyncio.to_thread(_checked, message.native.kind, answer, session)
        finally:
            # Also removes what a killed job left behind.
            await asyncio.shield(asyncio.to_thread(remove, folder))

    def progress(self, place: bytes) -> pb.ArtifactProgress:
        """The progress of the job with this name."""
        return read_progress(Path(self._area.root) / "jobs" / place.hex() / "progress")

    async def close(self) -> None:
        """Stops the processes, and removes their files."""
        await asyncio.gather(self._jobs.close(), self._compiles.close())
        self._area.close()


def _checked(kind: int, answer: bytes, session: BuildSession) -> bytes:
    """The answer of a job, if each library in it was compiled here, from checked source."""
    if kind != pb.ARTIFACT_KIND_INDUCTOR:
        return answer
    try:
        result = worker.JobResult.FromString(answer)
        kernels = pb.NativeBundle.FromString(result.native.data).kernels
    except DecodeError:
        return answer  # refused by whoever reads it
    if all(session.has_made(kernel.library) for kernel in kernels):
        return answer
    error = worker.JobError(
        kind=worker.JOB_ERROR_KIND_SOURCE,
        message="the artifact contains a library that this server did not compile",
    )
    return worker.JobResult(error=error).SerializeToString()
