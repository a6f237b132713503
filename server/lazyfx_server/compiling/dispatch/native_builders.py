"""Where native artifacts are built: on this machine, or on the nodes of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.dispatch.native_executor import NativeExecutor
from lazyfx_server.compiling.dispatch.sending import Jobs


class NativeBuilders(Protocol):
    """Builds native artifacts for one or more kinds of machine."""

    @property
    def targets(self) -> Sequence[pb.NativeTarget]:
        """Where their artifacts run; the first one is preferred. Empty before it is known."""

    @property
    def sandbox(self) -> pb.SandboxStatus:
        """How the processes are confined."""

    @property
    def why_none(self) -> str:
        """Why there are no targets."""

    @property
    def shares_kernels(self) -> bool:
        """Whether what is compiled for one job can be used for others."""

    async def start(self) -> None:
        """Start the processes, and determine the targets, which takes seconds.

        Raises:
            RequestError: Nothing can be built; says why.
        """

    def jobs_for(self, target: pb.NativeTarget) -> Jobs:
        """What sends jobs to the processes that build for this target."""

    def slots_for(self, target: pb.NativeTarget) -> int:
        """Jobs for this target that can run at a time."""

    def progress(self, place: bytes) -> pb.ArtifactProgress:
        """The progress of the job with this name, as far as it is known."""

    async def close(self) -> None:
        """Stop the processes, and remove their files."""


class LocalBuilders:
    """Processes on this machine.

    Args:
        executor: The processes.
        jobs: Sends jobs to them.
        sandbox: How they are confined.
    """

    def __init__(self, executor: NativeExecutor, jobs: Jobs, sandbox: pb.SandboxStatus) -> None:
        self._executor = executor
        self._jobs = jobs
        self.sandbox = sandbox

    @property
    def targets(self) -> Sequence[pb.NativeTarget]:
        """See `NativeBuilders.targets`."""
        return () if self._executor.target is None else (self._executor.target,)

    @property
    def why_none(self) -> str:
        """See `NativeBuilders.why_none`."""
        return "it has not tried to build one yet"

    @property
    def shares_kernels(self) -> bool:
        """See `NativeBuilders.shares_kernels`."""
        return self._executor.shares_kernels

    async def start(self) -> None:
        """See `NativeBuilders.start`."""
        await self._executor.start()
        description = await self._jobs.describe_native()
        self._executor.target = description.target
        self._executor.prepare(description.usual_build)

    def jobs_for(self, target: pb.NativeTarget) -> Jobs:
        """See `NativeBuilders.jobs_for`: there is one target."""
        del target
        return self._jobs

    def slots_for(self, target: pb.NativeTarget) -> int:
        """See `NativeBuilders.slots_for`."""
        del target
        return self._executor.workers

    def progress(self, place: bytes) -> pb.ArtifactProgress:
        """See `NativeBuilders.progress`."""
        return self._executor.progress(place)

    async def close(self) -> None:
        """See `NativeBuilders.close`."""
        await self._executor.close()
