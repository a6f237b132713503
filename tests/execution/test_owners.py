"""Which process runs the jobs of which owner."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import worker_jobs
from executor_calls import Start, order, pid_of, until

from lazyfx_server.execution import WorkerCrashed


async def test_other_owners_are_refused_while_no_worker_can_start(start: Start) -> None:
    executor = await start(
        workers=1, kept_warm=1, initializer=worker_jobs.initialize_unless_refused
    )
    one = await pid_of(executor, "one")
    worker_jobs.STOP_SIGN.write_text("no")
    try:
        with pytest.raises(WorkerCrashed, match="told not to"):
            await pid_of(executor, "two")
        assert await pid_of(executor, "one") == one
    finally:
        worker_jobs.STOP_SIGN.unlink()
    assert await pid_of(executor, "two") != one


async def test_owners_that_take_turns_keep_their_workers(start: Start) -> None:
    reasons: list[str] = []
    executor = await start(workers=1, kept_warm=1, on_restart=reasons.append)
    assert len(executor.pids) == 1, "more only once there is another owner"
    one = await pid_of(executor, "one")
    two = await pid_of(executor, "two")
    assert one != two
    for _ in range(3):
        assert await pid_of(executor, "one") == one
        assert await pid_of(executor, "two") == two
    assert executor.pids == {one, two}
    assert not reasons
    # A third replaces the one that has been idle for longest.
    assert await pid_of(executor, "three") not in (one, two)
    assert await pid_of(executor, "two") == two
    assert len(executor.pids) == 2
    assert reasons == ["recycled"]


async def test_no_more_jobs_run_at_once_than_there_are_workers(
    start: Start, tmp_path: Path
) -> None:
    executor = await start(workers=1, kept_warm=2, cancel_grace=0.1)
    for owner in ("one", "two", "three"):
        await pid_of(executor, owner)
    assert len(executor.pids) == 3
    touch = tmp_path / "began"
    first = asyncio.ensure_future(
        executor.run(order("sleep", seconds=600, touch=str(touch)), timeout=900, owner="one")
    )
    await until(lambda: touch.exists() and touch.read_text())
    second = asyncio.ensure_future(pid_of(executor, "two"))
    await asyncio.sleep(0.1)
    assert not second.done()
    first.cancel()  # after its grace its turn is the second one's
    assert await second in executor.pids


async def test_a_caller_that_leaves_gives_its_turn_to_the_next(start: Start) -> None:
    executor = await start(workers=1, kept_warm=1)
    await pid_of(executor, "one")
    for round_ in range(10):
        calls = [
            asyncio.ensure_future(pid_of(executor, f"{round_} {number}")) for number in range(4)
        ]
        for _ in range(round_):
            await asyncio.sleep(0)
        calls[0].cancel()
        calls[2].cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results[1::2]] == [int, int]
    await until(lambda: len(executor.pids) == 2)


async def test_jobs_of_many_owners_at_once_in_processes_of_their_own(start: Start) -> None:
    executor = await start(workers=3, kept_warm=1, max_jobs=5)
    owners = "abcde"
    runs: dict[str, set[int]] = {owner: set() for owner in owners}

    async def one(owner: str, number: int) -> None:
        if number % 7 == 0:
            with pytest.raises(WorkerCrashed):
                await executor.run(order("abort"), timeout=30, owner=owner)
        else:
            runs[owner].add(await pid_of(executor, owner))

    await asyncio.gather(*(one(owner, number) for number in range(8) for owner in owners))
    assert sum(map(len, runs.values())) == len(set().union(*runs.values()))
