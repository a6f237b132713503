"""Serves the build requests of native jobs: checks them and runs them in compile workers.

A native worker holds a graph and may be compromised; a compile worker sees only sources. This
module mediates between them: it accepts only a closed vocabulary, keeps the objects of a job so
that a job links only what the server has built, and identifies each object by what it was built
from.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from lazyfx_server.execution import CallRefused, ExecutionError, Executor
from lazyfx_server.jobs.native.toolchain.build_job import HEADER
from lazyfx_server.jobs.native.toolchain.build_keys import header_key, library_key
from lazyfx_server.jobs.native.toolchain.compiler import Compiler
from lazyfx_server.jobs.native.toolchain.flags import RequestRefused, check_build_request
from lazyfx_server.jobs.native.work_area import WorkArea, remove
from lazyfx_server.telemetry import Observer, SourceRefused
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

# A precompiled header takes about 100 MB, and its flags depend on callers' settings.
_MAX_HEADERS: Final = 8
_MAX_OBJECT_BYTES: Final = 512 << 20


class Builds:
    """Runs builds in separate workers.

    Args:
        executor: Runs serialized BuildJobs, each in a process that exits afterwards.
        compiler: Their C++ compiler.
        timeout: Time limit of one build in seconds.
        area: The parent of the builds' folders.
        observer: Notified of requests that contain something unknown.
        owner: The user that owns the builds' folders; None for the server's user.
    """

    def __init__(
        self,
        executor: Executor,
        compiler: Compiler,
        timeout: float,
        area: WorkArea,
        observer: Observer,
        owner: int | None = None,
    ) -> None:
        self._executor = executor
        self._compiler = compiler
        self._timeout = timeout
        self._observer = observer
        self._owner = owner
        self._area = area
        self._numbers = itertools.count(1)
        self._headers: dict[bytes, asyncio.Future[str]] = {}

    def session(self) -> BuildSession:
        """A session that answers the calls of one native job."""
        return BuildSession(self)

    async def build(self, request: worker.BuildRequest, objects: list[bytes]) -> worker.BuildResult:
        """Compile or link.

        Raises:
            CallRefused: The request is not a valid build request.
        """
        try:
            check_build_request(request)
        except RequestRefused as refusal:
            raise self._refused(str(refusal)) from refusal
        job = worker.BuildJob(request=request, objects=objects)
        if request.header:
            job.header = await self._header(request)
        result = await self._run(job, self._folder())
        if result.refused:
            raise self._refused(result.refused)
        result.key = library_key(request, self._compiler.identity)
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
        finally:
            if job.request.kind != worker.BUILD_KIND_HEADER:
                await asyncio.to_thread(remove, folder)

    def _folder(self) -> Path:
        return self._area.folder("builds", str(next(self._numbers)), owner=self._owner)

    async def _header(self, request: worker.BuildRequest) -> str:
        """The path of a precompiled header, built on first use; "" if there is none."""
        key = header_key(request, self._compiler.identity)
        found = self._headers.get(key)
        if found is None:
            if len(self._headers) >= _MAX_HEADERS:
                return ""
            found = self._headers[key] = asyncio.ensure_future(self._precompiled(request, key))
        return await asyncio.shield(found)

    async def _precompiled(self, request: worker.BuildRequest, key: bytes) -> str:
        wanted = worker.BuildRequest(
            kind=worker.BUILD_KIND_HEADER, flags=request.flags, header=request.header
        )
        for_good = True
        try:
            folder = self._area.folder("headers", key.hex(), owner=self._owner)
            result = await self._run(worker.BuildJob(request=wanted), folder)
            failed = result.failed or result.refused
        except (CallRefused, OSError) as failure:
            # Its worker was killed, or the disk is full: the next attempt may succeed.
            failed, for_good = str(failure), False
        if not failed:
            return str(folder / HEADER)
        _log.warning("cannot precompile a header: %s", failed)
        await asyncio.to_thread(remove, self._area.root / "headers" / key.hex())
        if not for_good:
            self._headers.pop(key, None)
        return ""


class BuildSession:
    """The builds of one native job.

    Args:
        builds: Runs them.
    """

    def __init__(self, builds: Builds) -> None:
        self._builds = builds
        self._objects: dict[bytes, bytes] = {}
        self._libraries: set[bytes] = set()
        self._bytes = 0
        self._warned = False

    async def __call__(self, question: bytes) -> bytes:
        """Answer one call.

        Raises:
            CallRefused: It is not a valid build request.
        """
        try:
            request = worker.BuildRequest.FromString(question)
        except DecodeError as error:
            raise CallRefused("the request cannot be parsed") from error
        missing = [key for key in request.objects if key not in self._objects]
        if missing:
            raise CallRefused("an object to link was not built for this job")
        objects = [self._objects[key] for key in request.objects]
        try:
            result = await self._builds.build(request, objects)
        except CallRefused as refusal:
            if not self._warned:
                self._warned = True
                _log.warning("refused a compile that a native job requested: %s", refusal)
            raise
        if request.kind in (worker.BUILD_KIND_OBJECT, worker.BUILD_KIND_DATA) and result.output:
            self._keep(result)
        elif result.output:
            self._libraries.add(hashlib.sha256(result.output).digest())
        return result.SerializeToString()

    def has_made(self, library: bytes) -> bool:
        """Whether these are the bytes of a library that was built for this job."""
        return hashlib.sha256(library).digest() in self._libraries

    def _keep(self, result: worker.BuildResult) -> None:
        if result.key in self._objects:
            return
        self._bytes += len(result.output)
        if self._bytes > _MAX_OBJECT_BYTES:
            raise CallRefused(f"the objects of one job have more than {_MAX_OBJECT_BYTES} bytes")
        self._objects[result.key] = result.output
