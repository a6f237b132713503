"""An executor whose workers are on the nodes of a Ray cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from lazyfx_server.execution.executor import (
    ExecutorClosed,
    JobBytes,
    NoWorker,
    WorkerCrashed,
    WorkerTimedOut,
)
from lazyfx_server.execution.job_calls import OnCall
from lazyfx_server.execution.ray_engine.cluster_state import Node
from lazyfx_server.execution.ray_engine.engine import RayEngine

# A node may have to start a worker first, and bytes have to travel; then it bounds the job itself.
_SLACK_SECONDS: Final = 150.0
# How many nodes may fail to take a job before it fails.
_MAX_LOST: Final = 3


class RayExecutor:
    """Runs jobs on nodes; see `Executor`.

    If a node ends while it has a job, that is the crash of a worker; if the cluster is lost, no
    worker took the job.

    Args:
        engine: The cluster, which is started and closed by its owner.
        pool: The pool of each node that runs them.
        fits: Whether a node may run them, by its description.
    """

    def __init__(
        self,
        engine: RayEngine,
        pool: str,
        fits: Callable[[bytes], bool] = lambda _: True,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._fits = fits
        self._closed: asyncio.Event = asyncio.Event()

    @property
    def workers(self) -> int:
        """Jobs that can run at the same time at present."""
        return sum(node.slots[self._pool] for node in self._candidates())

    async def start(self) -> None:
        """Check that there are workers.

        Raises:
            WorkerCrashed: There are none.
        """
        if not self.workers:
            raise WorkerCrashed(self._why_none())

    async def run(
        self,
        job: JobBytes,
        *,
        timeout: float,
        owner: str | None = None,
        on_call: OnCall | None = None,
    ) -> bytes:
        """Runs one job; see `Executor.run`. When cancelled, its worker is killed.

        Raises:
            NoWorker: No node can run it.
        """
        for left in reversed(range(_MAX_LOST)):
            try:
                return await self._attempt(job, timeout, owner, on_call)
            except NoWorker:
                if not left or not self._candidates():
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(
        self, job: JobBytes, timeout: float, owner: str | None, on_call: OnCall | None
    ) -> bytes:
        node = await self._take()
        running = asyncio.ensure_future(
            self._engine.run(node, self._pool, job, timeout, owner, on_call)
        )
        closing = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait(
                {running, closing},
                timeout=timeout + _SLACK_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if running.done():
                return running.result()
            if closing.done():
                raise ExecutorClosed("the executor was closed while the job ran")
            raise WorkerTimedOut(timeout)
        finally:
            closing.cancel()
            if not running.done():
                running.cancel()
            elif not running.cancelled():
                running.exception()  # mark it as retrieved: the caller may have gone away
            self._engine.cluster.give_back(node, self._pool)

    async def _take(self) -> Node:
        """A slot of the node that has the most; waits for one, unless no node fits.

        Raises:
            NoWorker: No node fits.
            ExecutorClosed: `close` was called.
        """
        while True:
            if self._closed.is_set():
                raise ExecutorClosed("the executor is closed")
            candidates = self._candidates()
            if not candidates:
                raise NoWorker(self._why_none())
            node = max(candidates, key=lambda node: node.free(self._pool))
            if node.free(self._pool) > 0:
                self._engine.cluster.take(node, self._pool)
                return node
            await self._engine.cluster.wait_until(self._is_decided)

    def _is_decided(self) -> bool:
        candidates = self._candidates()
        return (
            self._closed.is_set()
            or not candidates
            or any(node.free(self._pool) > 0 for node in candidates)
        )

    def _candidates(self) -> list[Node]:
        return [
            node
            for node in self._engine.cluster.nodes
            if node.slots.get(self._pool) and self._fits(node.description)
        ]

    def _why_none(self) -> str:
        return self._engine.cluster.status.problem or "no node of the Ray cluster can run this job"

    async def close(self) -> None:
        """Refuse jobs from now on, and stop those that run."""
        self._closed.set()
        self._engine.cluster.wake()
