"""Serves the build requests of native jobs: checks them and runs them in compile workers.

A native worker holds a graph and may be compromised; a compile worker sees only sources. This
module mediates between them: it accepts only a closed vocabulary, keeps the objects of a job so
that a job links only what the server has built, and identifies each object by what it was built
from. What has been built before is not built again (`compiling.kernels`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from google.protobuf.message import DecodeError

from lazyfx_server.compiling.dispatch.build_sessions import BuildSession
from lazyfx_server.compiling.dispatch.precompiled_headers import PrecompiledHeaders
from lazyfx_server.compiling.kernels.build_slots import BuildSlots
from lazyfx_server.compiling.kernels.kernel_flights import KernelFlights, Provided
from lazyfx_server.execution import CallRefused, ExecutionError, Executor
from lazyfx_server.jobs.native.toolchain.build_keys import library_key
from lazyfx_server.jobs.native.toolchain.compiler import Compiler
from lazyfx_server.jobs.native.toolchain.flags import RequestRefused, check_build_request
from lazyfx_server.jobs.native.toolchain.toolchain_digest import toolchain_digest
from lazyfx_server.jobs.native.work_area import WorkArea, remove
from lazyfx_server.telemetry import KernelSource, Observer, SourceRefused
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)


class Builds:
    """Runs builds in separate workers.

    Args:
        executor: Runs serialized BuildJobs, each in a process that exits afterwards.
        compiler: Their C++ compiler.
        timeout: Time limit of one build in seconds.
        area: The parent of the builds' folders.
        observer: Notified of requests that contain something unknown.
        owner: The user that owns the builds' folders; None for the server's user.
        kernels: Provides what has been built before; None to build everything for its job alone.
    """

    def __init__(
        self,
        executor: Executor,
        compiler: Compiler,
        timeout: float,
        area: WorkArea,
        observer: Observer,
        owner: int | None = None,
        kernels: KernelFlights | None = None,
    ) -> None:
        self._executor = executor
        self._compiler = compiler
        self._timeout = timeout
        self._observer = observer
        self._owner = owner
        self._area = area
        self._kernels = kernels
        self._slots = BuildSlots(executor.workers)
        self._numbers = itertools.count(1)
        self._headers = PrecompiledHeaders(self._run, compiler.identity, area, owner)
        self._toolchain: asyncio.Future[bytes | None] | None = None

    def session(self, scope: bytes | None = None) -> BuildSession:
        """A session that answers the calls of one native job.

        Args:
            scope: Whose kernels it uses and adds to: empty for those of all tenants, or the tag of
                one. None for none but its own.
        """
        return BuildSession(self.build, scope)

    async def build(
        self, request: worker.BuildRequest, objects: list[bytes], session: BuildSession
    ) -> Provided:
        """Compile or link, unless that has been done before.

        Raises:
            CallRefused: The request is not a valid build request.
        """
        try:
            check_build_request(request)
        except RequestRefused as refusal:
            raise self._refused(str(refusal)) from refusal
        build = partial(self._build, request, objects, session)
        toolchain = await self._toolchain_digest() if session.scope is not None else None
        if self._kernels is None or session.scope is None or toolchain is None:
            started = time.monotonic()
            result = await build(lambda: None)
            result.key = library_key(request, self._compiler.identity)
            source: KernelSource = "failed" if result.failed else "compiled"
            return Provided(result, source, time.monotonic() - started)
        key = library_key(request, toolchain)
        provided = await self._kernels.provide(key, session.scope, build)
        provided.result.key = key
        return provided

    async def _toolchain_digest(self) -> bytes | None:
        """What a key covers besides the request; None if that cannot be determined."""
        if self._toolchain is None:
            self._toolchain = asyncio.ensure_future(self._digest_toolchain())
        return await asyncio.shield(self._toolchain)

    async def _digest_toolchain(self) -> bytes | None:
        try:
            return await asyncio.to_thread(toolchain_digest, self._compiler)
        except OSError as error:
            _log.warning("kernels are not shared: cannot identify the C++ compiler: %s", error)
            return None

    async def _build(
        self,
        request: worker.BuildRequest,
        objects: list[bytes],
        session: BuildSession,
        begin: Callable[[], None],
    ) -> worker.BuildResult:
        job = worker.BuildJob(request=request, objects=objects)
        if request.header:
            job.header = await self._headers.path(request)
        async with self._slots.slot(session):
            begin()
            folder = self._area.folder("builds", str(next(self._numbers)), owner=self._owner)
            try:
                result = await self._run(job, folder)
            finally:
                await asyncio.shield(asyncio.to_thread(remove, folder))
        if result.refused:
            raise self._refused(result.refused)
        return result

    def _refused(self, reason: str) -> CallRefused:
        _log.debug("refused a compile that a native job requested: %s", reason)
        self._observer.observe(SourceRefused("build"))
        return CallRefused(reason)

    async def _run(self, job: worker.BuildJob, folder: Path) -> worker.BuildResult:
        job.folder = str(folder)
        try:
            answer = await self._executor.run(job.SerializeToString(), timeout=self._timeout)
            return worker.BuildResult.FromString(answer)
        except ExecutionError as error:
            raise CallRefused(f"the compiler did not finish: {error}") from error
        except DecodeError as error:
            raise CallRefused("the compile worker answered with something unreadable") from error
