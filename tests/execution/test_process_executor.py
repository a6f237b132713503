"""Worker processes that fail in every way that a process can."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import worker_jobs
from executor_calls import Start, order, pid_of, until

from lazyfx_server.execution import (
    ExecutorClosed,
    WorkerCrashed,
    WorkerFailed,
    WorkerTimedOut,
)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # an orphan's parent may be slow to reap it


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("job", "ending"),
    [
        ("abort", "killed by SIGABRT"),
        ("segfault", "killed by SIGSEGV"),
        ("kill_self", "killed by SIGKILL"),
        ("vanish", "exited with status 3"),
    ],
)
async def test_crash_fails_its_job_only(start: Start, job: str, ending: str) -> None:
    reasons: list[str] = []
    executor = await start(on_restart=reasons.append)
    other = asyncio.ensure_future(executor.run(order("sleep", seconds=0.3), timeout=30))
    with pytest.raises(WorkerCrashed, match=ending):
        await executor.run(order(job), timeout=30)
    assert await other == b"slept"
    await until(lambda: len(executor.pids) == 2)
    assert reasons == ["crash"]


async def test_a_worker_has_a_temporary_folder_for_multiprocessing(start: Start) -> None:
    executor = await start(workers=1)
    assert await executor.run(order("temporary_folder"), timeout=30) == b"used"


async def test_ending_is_known_of_a_worker_that_is_not_quite_dead_yet(start: Start) -> None:
    executor = await start(workers=1)
    for _ in range(5):
        with pytest.raises(WorkerCrashed, match="killed by SIGKILL"):
            await executor.run(order("let_go_and_hang"), timeout=30)


@pytest.mark.parametrize("job", ["ignore_signals_and_hang", "native"])
async def test_hung_job_is_killed_and_replaced(start: Start, tmp_path: Path, job: str) -> None:
    reasons: list[str] = []
    executor = await start(workers=1, on_restart=reasons.append)
    (hung,) = executor.pids
    touch = tmp_path / "began"
    hang = order("hang_in_native_code", touch=str(touch)) if job == "native" else order(job)
    with pytest.raises(WorkerTimedOut, match=r"0\.3 s"):
        await executor.run(hang, timeout=0.3)
    assert await executor.run(order("echo", text="next"), timeout=30) == b"next"
    assert not alive(hung)
    assert reasons == ["timeout"]


@pytest.mark.parametrize("then", ["crash", "hang"])
async def test_children_of_a_job_die_with_it(start: Start, tmp_path: Path, then: str) -> None:
    executor = await start(workers=1)
    touch = tmp_path / "pids"
    with pytest.raises((WorkerCrashed, WorkerTimedOut)):
        await executor.run(order("have_children", touch=str(touch), then=then), timeout=3)
    for pid in json.loads(touch.read_text()):
        await until(lambda pid=pid: not alive(pid))
    assert await executor.run(b"", timeout=30) == b""


async def test_worker_killed_while_idle_is_replaced_at_once(start: Start) -> None:
    reasons: list[str] = []
    executor = await start(on_restart=reasons.append)
    before = executor.pids
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: len(executor.pids) == 2 and not executor.pids & before)
    assert reasons == ["crash", "crash"]
    assert await executor.run(order("echo", text="fine"), timeout=30) == b"fine"


async def test_job_that_never_began_is_run_by_another_worker(start: Start) -> None:
    executor = await start(workers=1)
    (pid,) = executor.pids
    os.kill(pid, signal.SIGSTOP)  # it is there, and will never take the job
    call = asyncio.ensure_future(executor.run(order("echo", text="again"), timeout=30))
    await asyncio.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    assert await call == b"again"


async def test_job_that_kills_its_worker_is_not_run_again(start: Start, tmp_path: Path) -> None:
    executor = await start(workers=1)
    touch = tmp_path / "began"
    call = asyncio.ensure_future(
        executor.run(order("sleep", seconds=60, touch=str(touch)), timeout=90)
    )
    await until(lambda: touch.exists() and touch.read_text())
    pid = int(touch.read_text())
    touch.unlink()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerCrashed):
        await call
    await executor.run(b"", timeout=30)
    assert not touch.exists()


async def test_failing_job_keeps_its_worker(start: Start) -> None:
    executor = await start(workers=1)
    before = executor.pids
    for _ in range(3):
        with pytest.raises(WorkerFailed):
            await executor.run(order("fail", message="x" * 100_000), timeout=30)
    assert executor.pids == before


async def test_workers_are_recycled(start: Start) -> None:
    reasons: list[str] = []
    executor = await start(workers=1, max_jobs=3, on_restart=reasons.append)
    pids = [await pid_of(executor) for _ in range(9)]
    assert pids[0:1] * 3 + pids[3:4] * 3 + pids[6:7] * 3 == pids
    assert len(set(pids)) == 3
    await until(lambda: len(reasons) == 3)
    assert set(reasons) == {"recycled"}


async def test_cancelled_call_of_a_short_job_keeps_the_worker(start: Start) -> None:
    executor = await start(workers=1, cancel_grace=30.0)
    before = executor.pids
    call = asyncio.ensure_future(executor.run(order("sleep", seconds=0.2), timeout=30))
    await asyncio.sleep(0.05)
    call.cancel()
    assert await executor.run(order("echo", text="next"), timeout=30) == b"next"
    assert executor.pids == before


async def test_cancelled_call_of_a_long_job_frees_the_worker(start: Start, tmp_path: Path) -> None:
    reasons: list[str] = []
    executor = await start(workers=1, cancel_grace=0.1, on_restart=reasons.append)
    touch = tmp_path / "began"
    call = asyncio.ensure_future(
        executor.run(order("sleep", seconds=600, touch=str(touch)), timeout=900)
    )
    await until(lambda: touch.exists() and touch.read_text())
    call.cancel()
    assert await executor.run(order("echo", text="next"), timeout=30) == b"next"
    assert not alive(int(touch.read_text()))
    assert reasons == ["cancelled"]


async def test_without_grace_a_worker_is_killed_before_its_caller_goes_on(
    start: Start, tmp_path: Path
) -> None:
    executor = await start(workers=1, cancel_grace=0.0)
    touch = tmp_path / "began"
    call = asyncio.ensure_future(
        executor.run(order("sleep", seconds=600, touch=str(touch)), timeout=900)
    )
    await until(lambda: touch.exists() and touch.read_text())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    deadline = time.monotonic() + 60
    while alive(int(touch.read_text())):  # without a turn of the event loop
        assert time.monotonic() < deadline
        time.sleep(0.01)  # noqa: ASYNC251


async def test_initializer_runs_in_the_worker(start: Start) -> None:
    executor = await start(workers=1, initializer=worker_jobs.initialize)
    facts = json.loads(await executor.run(order("describe"), timeout=30))
    assert facts["initialized"] == "yes"
    assert facts["group"] == facts["pid"]
    assert "LAZYFX_TEST_INITIALIZED" not in os.environ


@pytest.mark.parametrize(
    ("initializer", "message"),
    [
        (worker_jobs.refuse_to_start, "RuntimeError: no accelerator here"),
        (worker_jobs.die_at_start, "exited with status 9"),
    ],
)
async def test_start_says_why_a_worker_does_not(
    start: Start, initializer: Callable[[], None], message: str
) -> None:
    with pytest.raises(WorkerCrashed, match=message):
        await start(initializer=initializer)


async def test_jobs_are_refused_while_no_worker_can_start(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = await start(workers=1, initializer=worker_jobs.initialize_unless_refused)
    (pid,) = executor.pids
    worker_jobs.STOP_SIGN.write_text("no")
    try:
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not executor.pids)
        with pytest.raises(WorkerCrashed, match="told not to"):
            await executor.run(b"", timeout=30)
    finally:
        worker_jobs.STOP_SIGN.unlink()
    await until(lambda: executor.pids)
    assert await executor.run(order("echo", text="back"), timeout=30) == b"back"


async def test_close_ends_running_and_waiting_jobs(start: Start) -> None:
    executor = await start(workers=1)
    pids = executor.pids
    calls = [
        asyncio.ensure_future(executor.run(order("sleep", seconds=600), timeout=900))
        for _ in range(3)
    ]
    await asyncio.sleep(0.05)
    await executor.close()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [ExecutorClosed] * 3
    assert not any(alive(pid) for pid in pids)


async def test_restarts_leak_no_descriptors(start: Start, restarts: int) -> None:
    executor = await start(workers=1)

    async def crash(times: int) -> int:
        for _ in range(times):
            with pytest.raises(WorkerCrashed):
                await executor.run(order("abort"), timeout=30)
        await executor.run(b"", timeout=30)
        return open_descriptors()

    before = await crash(3)
    assert await crash(restarts) <= before + 6


async def test_mixed_jobs_give_no_wrong_result_and_leave_no_orphan(
    start: Start, restarts: int
) -> None:
    executor = await start(workers=4, max_jobs=20)
    seen: set[int] = set()
    dice = random.Random(7)

    async def one(number: int) -> None:
        seen.update(executor.pids)
        what = dice.choice(["echo", "echo", "echo", "big", "fail", "abort", "kill", "hang"])
        if what == "echo":
            assert await executor.run(order("echo", text=str(number)), timeout=30) == (
                str(number).encode()
            )
        elif what == "big":
            size = 200_000 + number
            assert await executor.run(order("big", size=size), timeout=30) == worker_jobs.big(size)
        elif what == "fail":
            with pytest.raises(WorkerFailed, match=str(number)):
                await executor.run(order("fail", message=str(number)), timeout=30)
        elif what == "abort":
            with pytest.raises(WorkerCrashed):
                await executor.run(order("abort"), timeout=30)
        elif what == "kill":
            with pytest.raises(WorkerCrashed):
                await executor.run(order("kill_self"), timeout=30)
        else:
            with pytest.raises(WorkerTimedOut):
                await executor.run(order("sleep", seconds=600), timeout=0.05)

    await asyncio.gather(*(one(number) for number in range(10 * restarts)))
    await until(lambda: len(executor.pids) == 4)
    seen |= executor.pids
    await executor.close()
    for pid in seen:
        await until(lambda pid=pid: not alive(pid))


async def test_idle_workers_that_have_run_jobs_can_be_replaced(start: Start) -> None:
    reasons: list[str] = []
    executor = await start(on_restart=reasons.append)
    used = await pid_of(executor)
    (fresh,) = executor.pids - {used}
    busy = asyncio.ensure_future(executor.run(order("sleep", seconds=0.5), timeout=30))
    await asyncio.sleep(0)
    executor.trim()
    assert await busy == b"slept", "a busy worker stays"
    await until(lambda: len(executor.pids) == 2)
    executor.trim()
    await until(lambda: len(executor.pids) == 2 and used not in executor.pids)
    assert fresh in executor.pids
    assert reasons == ["recycled"]
