"""Calls of jobs in worker processes: at the same time, bounded, and ended with their job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
import worker_jobs

from lazyfx_server.execution import (
    CallBounds,
    ProcessExecutor,
    WorkerCrashed,
    WorkerTimedOut,
    start_forkserver,
)


def order(do: str, **arguments: object) -> bytes:
    return json.dumps({"do": do, **arguments}).encode()


async def running(
    work: Callable[[ProcessExecutor], Awaitable[None]], bounds: CallBounds | None = None
) -> None:
    executor = ProcessExecutor(
        worker_jobs.run, processes=start_forkserver(), workers=1, calls=bounds
    )
    await executor.start()
    try:
        await work(executor)
    finally:
        await executor.close()


@pytest.mark.parametrize("at_once", [64, 3])
async def test_calls_of_several_threads_are_answered_at_the_same_time(at_once: int) -> None:
    waiting: list[bytes] = []
    most = 0

    async def answer(question: bytes) -> bytes:
        nonlocal most
        waiting.append(question)
        most = max(most, len(waiting))
        await asyncio.sleep(0.05)
        waiting.remove(question)
        return b"<" + question + b">"

    async def work(executor: ProcessExecutor) -> None:
        job = order("ask_from_threads", count=20)
        result = await executor.run(job, timeout=30, on_call=answer)
        assert result == b",".join(b"<%d>" % number for number in range(20))
        assert most > 1
        assert await executor.run(order("echo", text="next"), timeout=30) == b"next"

    await running(work, CallBounds(at_once=at_once))


async def test_a_defect_of_the_server_tells_the_job_nothing() -> None:
    async def answer(question: bytes) -> bytes:
        raise LookupError("a secret of the server")

    async def work(executor: ProcessExecutor) -> None:
        job = order("ask_and_say_why_not", text="?")
        result = await executor.run(job, timeout=30, on_call=answer)
        assert result == b"the server could not answer this call"

    await running(work)


async def test_a_job_that_asks_too_often_or_too_much_is_ended() -> None:
    asked = 0

    async def answer(question: bytes) -> bytes:
        nonlocal asked
        asked += 1
        return b"so"

    async def work(executor: ProcessExecutor) -> None:
        with pytest.raises(WorkerCrashed):
            await executor.run(order("ask_for_ever"), timeout=30, on_call=answer)
        assert asked == 100
        with pytest.raises(WorkerCrashed):
            await executor.run(order("ask_much", size=2 << 20), timeout=30, on_call=answer)
        assert await executor.run(order("echo", text="next"), timeout=30) == b"next"

    await running(work, CallBounds(calls=100, bytes=1 << 20))


async def test_calls_end_with_their_job() -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def answer(question: bytes) -> bytes:
        asked.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return b""

    async def work(executor: ProcessExecutor) -> None:
        timeout = 0.5
        while not asked.is_set():  # a busy machine may end the job before it asks
            with pytest.raises(WorkerTimedOut):
                await executor.run(order("ask", text="?"), timeout=timeout, on_call=answer)
            timeout *= 2
        await asyncio.wait_for(ended.wait(), 30)
        asked.clear()
        ended.clear()
        task = asyncio.ensure_future(
            executor.run(order("ask", text="?"), timeout=30, on_call=answer)
        )
        await asyncio.wait_for(asked.wait(), 30)
        task.cancel()
        await asyncio.wait_for(ended.wait(), 30)

    await running(work)
