"""Precompiled headers: made once for each set of flags, and used by the builds of all jobs.

They contain nothing of a caller, and save most of the time of a kernel.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from lazyfx_server.execution import CallRefused
from lazyfx_server.jobs.native.toolchain.build_job import HEADER
from lazyfx_server.jobs.native.toolchain.build_keys import header_key
from lazyfx_server.jobs.native.work_area import WorkArea, remove
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

# A precompiled header takes about 100 MB, and its flags depend on callers' settings.
_MAX_HEADERS: Final = 8


class PrecompiledHeaders:
    """The precompiled headers of a server.

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
        self._known: dict[bytes, asyncio.Future[str]] = {}

    async def path(self, request: worker.BuildRequest) -> str:
        """The path of the header of a request, precompiled on first use; "" if there is none."""
        key = header_key(request, self._identity)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MAX_HEADERS:
                return ""
            found = self._known[key] = asyncio.ensure_future(self._precompiled(request, key))
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
            self._known.pop(key, None)
        return ""
