"""Serves the build requests of native jobs: checks them and runs them in compile workers.

A native worker holds a graph and may be compromised; a compile worker sees only sources. This
module mediates between them: it accepts only a closed vocabulary, keeps the objects of a job so
that a job links only what the server has built, and identifies each object by what it was built
from. What has been built before is not built again (`compiling.kernels`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from lazyfx_server.compiling.dispatch.build_sessions import BuildSession
from lazyfx_server.compiling.dispatch.precompiled_headers import PrecompiledHeaders
from lazyfx_server.compiling.kernels.build_slots import BuildSlots
from lazyfx_server.compiling.kernels.kernel_flights import (
    Compile,
    Elsewhere,
    KernelFlights,
    Provided,
    Turn,
)
from lazyfx_server.execution import (
    CallRefused,
    ExecutionError,
    Executor,
    NoWorker,
    WorkerCrashed,
    WorkerFailed,
)
from lazyfx_server.execution.owned_folder import remove
from lazyfx_server.jobs.native.toolchain.build_job import CompilerKilledError
from lazyfx_server.jobs.native.toolchain.build_keys import library_key
from lazyfx_server.jobs.native.toolchain.compiler import Compiler
from lazyfx_server.jobs.native.toolchain.flags import RequestRefused, check_build_request
from lazyfx_server.jobs.native.toolchain.toolchain_digest import Toolchain, read_toolchain
from lazyfx_server.jobs.native.work_area import WorkArea
from lazyfx_server.telemetry import KernelSource, Observer, SourceRefused
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

# Data of a package's constants is assembled at once, in any size: nothing to gain from sharing it.
_SHARED_KINDS: Final = frozenset(
    (worker.BUILD_KIND_OBJECT, worker.BUILD_KIND_LIBRARY, worker.BUILD_KIND_LINK)
)

# A server that was only started to say something does not live so long.
_SECONDS_TO_PREPARATION: Final = 3.0

_KILLED: Final = CompilerKilledError.__qualname__


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
        self._toolchain: asyncio.Future[Toolchain | None] | None = None
        self._why_unshared = ""

    def session(
        self, scope: bytes | None = None, elsewhere: Elsewhere | None = None
    ) -> BuildSession:
        """A session that answers the calls of one native job.

        Args:
            scope: Whose kernels it uses and adds to: empty for those of all tenants, or the tag of
                one. None for none but its own.
            elsewhere: More kernels of this scope.
        """
        return BuildSession(self.build, scope, elsewhere)

    async def prepare(self, request: worker.BuildRequest) -> None:
        """Precompile the header of a build, unless the server ends soon or a job is earlier."""
        if not request.header:  # Inductor is set to use none
            return
        with contextlib.suppress(RequestRefused):
            check_build_request(request)
            await asyncio.sleep(_SECONDS_TO_PREPARATION)
            async with self._headers.use(request, self):
                pass

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
        turn = partial(self._turn, request, objects, session)
        toolchain = None if session.scope is None else await self._usable_toolchain()
        identity = self._compiler.identity if toolchain is None else toolchain.digest
        key = library_key(request, identity)
        if toolchain is None or request.kind not in _SHARED_KINDS:
            provided = await _compiled(turn)
        else:
            assert self._kernels is not None, "has a toolchain"
            assert session.scope is not None, "has a toolchain"
            may_keep = partial(self._may_keep, toolchain, session)
            provided = await self._kernels.provide(
                key, session.scope, turn, may_keep, session.elsewhere
            )
        provided.result.key = key
        return provided

    @property
    def shares(self) -> bool:
        """Whether what is built for one job can be used for others, as far as is known."""
        return self._kernels is not None and not self._why_unshared

    async def start(self) -> None:
        """Read the toolchain, before anything is built with it; takes a second or two."""
        await self._usable_toolchain()

    async def _usable_toolchain(self) -> Toolchain | None:
        """What a key covers besides the request; None if nothing is shared."""
        if not self.shares:
            return None
        if self._toolchain is None:
            self._toolchain = asyncio.ensure_future(self._read_toolchain())
        toolchain = await asyncio.shield(self._toolchain)
        return toolchain if self.shares else None

    async def _read_toolchain(self) -> Toolchain | None:
        try:
            return await asyncio.to_thread(read_toolchain, self._compiler)
        except (OSError, ValueError) as error:
            self._share_no_more(f"the C++ compiler cannot be identified: {error}")
            return None

    async def _may_keep(
        self, toolchain: Toolchain, session: BuildSession, result: worker.BuildResult
    ) -> bool:
        if changed := await asyncio.to_thread(toolchain.changed):
            self._share_no_more(f"{changed!r} has changed; restart the server to share them again")
        return self.shares and session.may_share(len(result.output))

    def _share_no_more(self, why: str) -> None:
        if not self._why_unshared:
            self._why_unshared = why
            _log.warning("each job compiles its kernels for itself from now on: %s", why)

    @asynccontextmanager
    async def _turn(
        self, request: worker.BuildRequest, objects: list[bytes], session: BuildSession
    ) -> AsyncIterator[Compile]:
        """Wait for a compiler, and for the precompiled header; yields what runs the build."""
        job = worker.BuildJob(request=request, objects=objects)
        async with AsyncExitStack() as held:
            if request.header:
                job.header = await held.enter_async_context(self._headers.use(request, session))
            await held.enter_async_context(self._slots.slot(session))
            yield partial(self._build, job)

    async def _build(self, job: worker.BuildJob) -> worker.BuildResult:
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
        """Run a compile, and once more if it was killed: not for its source, in most cases.

        Raises:
            CallRefused: It did not finish.
        """
        job.folder = str(folder)
        data = job.SerializeToString()
        try:
            try:
                answer = await self._executor.run(data, timeout=self._timeout)
            except NoWorker:
                raise
            except (WorkerCrashed, WorkerFailed) as error:
                if isinstance(error, WorkerFailed) and error.type_name != _KILLED:
                    raise
                # Not the message: it may quote the job's source.
                _log.warning(
                    "a C++ compile was killed, and is tried again: %s", type(error).__name__
                )
                answer = await self._executor.run(data, timeout=self._timeout)
            return worker.BuildResult.FromString(answer)
        except ExecutionError as error:
            raise CallRefused(f"the compiler did not finish: {error}") from error
        except DecodeError as error:
            raise CallRefused("the compile worker answered with something unreadable") from error


async def _compiled(turn: Turn) -> Provided:
    """A kernel for one job only."""
    async with turn() as compile_it:
        started = time.monotonic()
        result = await compile_it()
    source: KernelSource = "failed" if result.failed else "compiled"
    return Provided(result, source, time.monotonic() - started)
