from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import worker_jobs
from executor_calls import Start

from lazyfx_server.execution import ProcessExecutor, SpawnSource, start_forkserver


@pytest.fixture
def restarts(request: pytest.FixtureRequest) -> int:
    """How many workers a test may use up: each that is spawned is a new interpreter."""
    return 20 if request.node.callspec.params["start"] == "forked" else 8


@pytest.fixture(params=["forked", "spawned"])
async def start(request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    started: list[ProcessExecutor] = []
    processes = start_forkserver() if request.param == "forked" else SpawnSource()

    async def make(**options: object) -> ProcessExecutor:
        arguments = {"workers": 2, "processes": processes, **options}
        executor = ProcessExecutor(worker_jobs.run, **arguments)  # type: ignore[arg-type]
        started.append(executor)
        await executor.start()
        return executor

    yield make
    for executor in started:
        await executor.close()
