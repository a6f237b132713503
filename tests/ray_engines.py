"""Ray for tests: one engine for a test run, in a thread, because each test has its own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lazyfx_server.execution import JobBytes, OnCall
from lazyfx_server.execution.ray_engine import RayEngine, RayExecutor

START_SECONDS = 180.0
_T = TypeVar("_T")


class ThreadedEngine:
    """A local Ray whose nodes run the jobs of `worker_jobs`."""

    def __init__(self, limit: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        config = json.dumps({"limit": limit, "refuse": ""}).encode()

        async def start() -> RayEngine:
            engine = RayEngine("local", "ray_jobs:open_pools", config)
            assert await engine.start(START_SECONDS), engine.cluster.status
            return engine

        self._importable = _importable(Path(__file__).parent / "execution")
        self._importable.__enter__()
        self.engine = self.wait(start())

    def wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS + 30)

    async def of(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await what runs in the engine's loop; cancelled with the caller."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        self.wait(self.engine.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._importable.__exit__(None, None, None)


class ThreadedExecutor:
    """An executor of such an engine, for the event loop of a test."""

    def __init__(self, engine: ThreadedEngine, pool: str = "jobs") -> None:
        self._engine = engine

        async def make() -> RayExecutor:
            return RayExecutor(engine.engine, pool)

        self.inner = engine.wait(make())

    @property
    def workers(self) -> int:
        return self.inner.workers

    async def start(self) -> None:
        await self._engine.of(self.inner.start())

    async def run(
        self,
        job: JobBytes,
        *,
        timeout: float,
        owner: str | None = None,
        on_call: OnCall | None = None,
    ) -> bytes:
        running = self.inner.run(job, timeout=timeout, owner=owner, on_call=on_call)
        return await self._engine.of(running)

    async def close(self) -> None:
        await self._engine.of(self.inner.close())


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets the processes that start within the block import the modules of a folder."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{folder}:{before}" if before else str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
