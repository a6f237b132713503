"""Calls of an executor whose workers run `worker_jobs`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from lazyfx_server.execution import ProcessExecutor

Start = Callable[..., "asyncio.Future[ProcessExecutor]"]


def order(do: str, **arguments: object) -> bytes:
    return json.dumps({"do": do, **arguments}).encode()


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it never became true"
        await asyncio.sleep(0.005)


async def pid_of(executor: ProcessExecutor, owner: str | None = None) -> int:
    return json.loads(await executor.run(order("describe"), timeout=30, owner=owner))["pid"]
