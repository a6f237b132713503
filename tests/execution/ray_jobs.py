"""The executors of a node of Ray, for tests; the actor imports this module by name."""

from __future__ import annotations

import json

import worker_jobs

from lazyfx_server.execution import Executor, ProcessExecutor, start_forkserver
from lazyfx_server.execution.ray_engine import NodeRefused


class Pools:
    """Two pools: one for most tests, and one that is confined, with a second of CPU time."""

    def __init__(self, limit: int, refuse: str) -> None:
        processes = start_forkserver()
        self._refuse = refuse
        self.pools: dict[str, Executor] = {
            "jobs": ProcessExecutor(
                worker_jobs.run, processes=processes, workers=2, max_result_bytes=limit,
                cancel_grace=0.0,
            ),
            "confined": ProcessExecutor(
                worker_jobs.run, processes=processes, workers=1, cancel_grace=0.0, cpu_seconds=1.0,
                initializer=worker_jobs.confine,
            ),
        }  # fmt: skip

    async def start(self) -> bytes:
        if self._refuse:
            raise NodeRefused(self._refuse)
        for pool in self.pools.values():
            await pool.start()
        return b"a node of the tests"

    async def ask(self, question: bytes) -> bytes:
        return question[::-1]

    async def close(self) -> None:
        for pool in self.pools.values():
            await pool.close()


def open_pools(config: bytes) -> Pools:
    return Pools(**json.loads(config))
