"""Worker processes of this machine, for the time in which no node of a cluster can run jobs."""

from __future__ import annotations

import asyncio
import logging

from lazyfx_server.execution import (
    Executor,
    JobBytes,
    NoWorker,
    OnCall,
    ProcessExecutor,
    WorkerCrashed,
)

_log = logging.getLogger(__name__)


class FallbackExecutor:
    """Runs jobs on nodes, and in local processes while there is no node; see `Executor`.

    The local processes are started when they are first needed, and then kept.

    Args:
        nodes: Runs jobs on nodes; raises NoWorker when there is none.
        local: Local processes, not started yet.
    """

    def __init__(self, nodes: Executor, local: ProcessExecutor) -> None:
        self._nodes = nodes
        self._local = local
        self._starting = asyncio.Lock()
        self._is_started = False

    @property
    def workers(self) -> int:
        """Jobs that can run at the same time at present."""
        return self._nodes.workers or self._local.workers

    async def start(self) -> None:
        """See `Executor.start`: both may start later."""

    async def run(
        self,
        job: JobBytes,
        *,
        timeout: float,
        owner: str | None = None,
        on_call: OnCall | None = None,
    ) -> bytes:
        """Runs one job; see `Executor.run`."""
        try:
            return await self._nodes.run(job, timeout=timeout, owner=owner, on_call=on_call)
        except NoWorker as error:
            await self._start_local(error)
        return await self._local.run(job, timeout=timeout, owner=owner, on_call=on_call)

    async def _start_local(self, problem: NoWorker) -> None:
        async with self._starting:
            if self._is_started:
                return
            _log.warning("jobs run on this machine until there is a node: %s", problem)
            try:
                await self._local.start()
            except WorkerCrashed as error:
                raise NoWorker(f"{problem}; and on this machine: {error}") from error
            self._is_started = True

    async def close(self) -> None:
        """Stops both."""
        await asyncio.gather(self._nodes.close(), self._local.close())

    def trim(self) -> None:
        """See `ProcessExecutor.trim`."""
        self._local.trim()
