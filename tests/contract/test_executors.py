"""The contract of every executor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
import worker_jobs
from inline_executor import InlineExecutor
from ray_engines import ThreadedEngine, ThreadedExecutor

from lazyfx_server.execution import (
    CallRefused,
    Executor,
    ExecutorClosed,
    ProcessExecutor,
    ResultTooLarge,
    SpawnSource,
    WorkerFailed,
    WorkerTimedOut,
    start_forkserver,
)

LIMIT = 4 << 20


@pytest.fixture(scope="module")
def ray_engine() -> Iterator[ThreadedEngine]:
    engine = ThreadedEngine(LIMIT)
    yield engine
    engine.close()


def order(do: str, **arguments: object) -> bytes:
    return json.dumps({"do": do, **arguments}).encode()


@pytest.fixture(
    params=[
        "inline",
        "forked processes",
        "spawned processes",
        pytest.param("ray", marks=pytest.mark.long),
    ]
)
async def executor(request: pytest.FixtureRequest) -> AsyncIterator[Executor]:
    if request.param == "ray":
        made: Executor = ThreadedExecutor(request.getfixturevalue("ray_engine"))
    elif request.param == "inline":
        made = InlineExecutor(worker_jobs.run, workers=2, max_result_bytes=LIMIT)
    else:
        forked = request.param == "forked processes"
        processes = start_forkserver() if forked else SpawnSource()
        made = ProcessExecutor(
            worker_jobs.run, processes=processes, workers=2, max_result_bytes=LIMIT
        )
    await made.start()
    yield made
    await made.close()


async def test_result_comes_back(executor: Executor) -> None:
    assert await executor.run(order("echo", text="héllo"), timeout=30) == "héllo".encode()


async def test_empty_job_and_empty_result(executor: Executor) -> None:
    assert await executor.run(b"", timeout=30) == b""


@pytest.mark.parametrize("size", [1, 65_536, 65_537, 1_000_003, LIMIT])
async def test_results_of_many_sizes(executor: Executor, size: int) -> None:
    assert await executor.run(order("big", size=size), timeout=30) == worker_jobs.big(size)


async def test_large_job(executor: Executor) -> None:
    text = "x" * 3_000_000
    assert await executor.run(order("echo", text=text), timeout=30) == text.encode()


async def test_result_over_the_bound(executor: Executor) -> None:
    with pytest.raises(ResultTooLarge) as caught:
        await executor.run(order("big", size=LIMIT + 1), timeout=30)
    assert (caught.value.size, caught.value.limit) == (LIMIT + 1, LIMIT)
    assert await executor.run(order("echo", text="still here"), timeout=30) == b"still here"


async def test_exception_fails_its_job_only(executor: Executor) -> None:
    failed, fine = await asyncio.gather(
        executor.run(order("fail", message="no such node"), timeout=30),
        executor.run(order("echo", text="fine"), timeout=30),
        return_exceptions=True,
    )
    assert isinstance(failed, WorkerFailed)
    assert (failed.type_name, failed.message) == ("LookupError", "no such node")
    assert fine == b"fine"


async def test_exit_and_wrong_type_are_failures(executor: Executor) -> None:
    with pytest.raises(WorkerFailed, match="SystemExit"):
        await executor.run(order("leave", status=4), timeout=30)
    with pytest.raises(WorkerFailed, match="TypeError"):
        await executor.run(order("wrong_type"), timeout=30)
    assert await executor.run(b"", timeout=30) == b""


async def test_overrun(executor: Executor) -> None:
    with pytest.raises(WorkerTimedOut) as caught:
        await executor.run(order("sleep", seconds=1.5), timeout=0.05)
    assert caught.value.seconds == 0.05
    assert await executor.run(order("echo", text="next"), timeout=30) == b"next"


async def test_timeout_does_not_count_the_wait_for_a_worker(executor: Executor) -> None:
    # Each of the six needs less than half of its timeout; in line they take longer than it.
    jobs = [executor.run(order("sleep", seconds=0.4), timeout=1.0) for _ in range(6)]
    assert await asyncio.gather(*jobs) == [b"slept"] * 6


async def test_more_jobs_than_workers(executor: Executor) -> None:
    results = await asyncio.gather(
        *(executor.run(order("echo", text=str(n)), timeout=30) for n in range(50))
    )
    assert results == [str(n).encode() for n in range(50)]


async def test_cancelled_call_leaves_the_executor_whole(executor: Executor) -> None:
    calls = [
        asyncio.ensure_future(executor.run(order("sleep", seconds=0.2), timeout=30))
        for _ in range(6)  # two run, four wait
    ]
    await asyncio.sleep(0.05)
    for call in calls:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    answers = await asyncio.gather(
        *(executor.run(order("echo", text=str(n)), timeout=30) for n in range(8))
    )
    assert answers == [str(n).encode() for n in range(8)]


async def test_workers_says_how_many_run_at_once(executor: Executor) -> None:
    assert executor.workers == 2


async def test_closed_executor_refuses(executor: Executor) -> None:
    await executor.close()
    await executor.close()
    with pytest.raises(ExecutorClosed):
        await executor.run(b"", timeout=30)


async def answered(question: bytes) -> bytes:
    if question == b"no":
        raise CallRefused("not that")
    if question == b"oops":
        raise LookupError("a secret of the server")
    await asyncio.sleep(0)
    return question.upper()


async def test_a_job_can_ask_the_server(executor: Executor) -> None:
    for text in ("a", "b" * 100_000):
        result = await executor.run(order("ask", text=text), timeout=30, on_call=answered)
        assert result == text.upper().encode()


async def test_a_call_that_is_refused_says_why(executor: Executor) -> None:
    job = order("ask_and_say_why_not", text="no")
    assert await executor.run(job, timeout=30, on_call=answered) == b"not that"
    assert b"may not call" in await executor.run(job, timeout=30)
