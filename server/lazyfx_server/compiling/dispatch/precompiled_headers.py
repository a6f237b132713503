"""Precompiled headers: made once for each set of flags, and used by the builds of all jobs.

They contain nothing of a caller, and save most of the time of a kernel.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from cachetools import TTLCache

from lazyfx_server.execution import CallRefused, ExecutorClosed
from lazyfx_server.execution.owned_folder import remove
from lazyfx_server.jobs.native.toolchain.build_job import HEADER
from lazyfx_server.jobs.native.toolchain.build_keys import header_key
from lazyfx_server.jobs.native.work_area import WorkArea
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

# A precompiled header takes about 100 MB, and its flags depend on callers' settings.
_MAX_HEADERS: Final = 8
# One job compiles all its kernels with one or two sets of flags.
_MAX_FOR_JOB: Final = 2
_RETRY_SECONDS: Final = 60.0
_MAX_FAILED: Final = 256


@dataclass(eq=False, slots=True)
class _Header:
    """A precompiled header.

    Attributes:
        path: Its path, or "" if it could not be made.
        users: Builds that read it now, or wait for it.
        jobs: Jobs that have used it.
    """

    path: asyncio.Future[str]
    users: int = 0
    jobs: int = 0


class PrecompiledHeaders:
    """The precompiled headers of a server: those that were used last, and the one of most jobs.

    Args:
        run: Runs a build in a folder, which it keeps.
        identity: The identity of the compiler.
        area: The parent of their folders.
        owner: The user that owns the folders; None for the server's user.
    """

    def __init__(
        self,
        run: Callable[[worker.BuildJob, Path], Awaitable[worker.BuildResult]],
        identity: bytes,
        area: WorkArea,
        owner: int | None,
    ) -> None:
        self._run = run
        self._identity = identity
        self._area = area
        self._owner = owner
        self._numbers = itertools.count(1)
        self._known: dict[bytes, _Header] = {}  # the one that was used last is the last
        # Until when flags that failed are not tried again.
        self._failed: TTLCache[bytes, None] = TTLCache(_MAX_FAILED, _RETRY_SECONDS)
        self._removing: set[asyncio.Task[None]] = set()
        self._used: WeakKeyDictionary[object, set[bytes]] = WeakKeyDictionary()

    @asynccontextmanager
    async def use(self, request: worker.BuildRequest, job: object) -> AsyncIterator[str]:
        """The path of the header of a request within the block; "" if it has no precompiled one.

        Args:
            request: Names the header and its flags.
            job: Whose request it is; weakly referenced.
        """
        header = self._wanted(request, job)
        if header is None:
            yield ""
            return
        header.users += 1
        try:
            yield await asyncio.shield(header.path)
        finally:
            header.users -= 1

    def _wanted(self, request: worker.BuildRequest, job: object) -> _Header | None:
        key = header_key(request, self._identity)
        used = self._used.setdefault(job, set())
        if key not in used and len(used) >= _MAX_FOR_JOB:
            return None
        header = self._known.pop(key, None)
        if header is None:
            if key in self._failed or not self._make_room():
                return None
            header = _Header(asyncio.ensure_future(self._precompiled(request, key)))
        self._known[key] = header
        if key not in used:
            used.add(key)
            header.jobs += 1
        return header

    def _make_room(self) -> bool:
        """Remove the header that was not used for longest, if there are too many."""
        if len(self._known) < _MAX_HEADERS:
            return True
        most = max(self._known.values(), key=lambda header: header.jobs)
        for key, header in self._known.items():
            if header is not most and not header.users and header.path.done():
                del self._known[key]
                if not header.path.cancelled() and header.path.exception() is None:
                    self._remove(Path(header.path.result()))
                return True
        return False

    def _remove(self, header: Path) -> None:
        assert header.name == HEADER, "those that failed are not kept"
        task = asyncio.ensure_future(asyncio.to_thread(remove, header.parent))
        self._removing.add(task)
        task.add_done_callback(self._removing.discard)

    async def _precompiled(self, request: worker.BuildRequest, key: bytes) -> str:
        wanted = worker.BuildRequest(
            kind=worker.BUILD_KIND_HEADER, flags=request.flags, header=request.header
        )
        number = str(next(self._numbers))
        try:
            folder = self._area.folder("headers", number, owner=self._owner)
            result = await self._run(worker.BuildJob(request=wanted), folder)
            failed = result.failed or result.refused
            if failed:
                self._failed[key] = None
        except (CallRefused, OSError) as failure:
            # Its worker was killed, or the disk is full: the next attempt may succeed.
            failed = str(failure)
            if isinstance(failure.__cause__, ExecutorClosed):
                return ""
        if not failed:
            return str(folder / HEADER)
        _log.warning("cannot precompile a header: %s", failed)
        await asyncio.to_thread(remove, self._area.root / "headers" / number)
        self._known.pop(key, None)
        return ""
