"""The contract of every executor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import ray_jobs
import worker_jobs
from inline_executor import InlineExecutor
from ray_engines import START_SECONDS, ThreadedEngine, ThreadedExecutor

from lazyfx_server.execution import (
    CallRefused,
    Executor,
    ExecutorClosed,
    NoWorker,
    ProcessExecutor,
    ResultTooLarge,
    SpawnSource,
    WorkerCrashed,
    WorkerFailed,
    WorkerOutOfCpu,
    WorkerTimedOut,
    start_forkserver,
)
from lazyfx_server.security.sandbox import available

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


# What holds of executors whose jobs run in processes, here or elsewhere.


@pytest.fixture(params=["forked processes", pytest.param("ray", marks=pytest.mark.long)])
async def pools(request: pytest.FixtureRequest) -> AsyncIterator[dict[str, Executor]]:
    """The pools of `ray_jobs`: here, or on a node of Ray."""
    if request.param == "ray":
        engine = request.getfixturevalue("ray_engine")
        yield {name: ThreadedExecutor(engine, name) for name in ("jobs", "confined")}
    else:
        made = ray_jobs.Pools(LIMIT, "")
        await made.start()
        yield made.pools
        await made.close()


@pytest.mark.parametrize(
    "job", [order("abort"), order("kill_self"), order("vanish"), order("let_go_and_hang")]
)
async def test_crash_fails_its_job_only(pools: dict[str, Executor], job: bytes) -> None:
    executor = pools["jobs"]
    crashed, fine = await asyncio.gather(
        executor.run(job, timeout=30),
        executor.run(order("sleep", seconds=0.3), timeout=30),
        return_exceptions=True,
    )
    assert isinstance(crashed, WorkerCrashed)
    assert not isinstance(crashed, NoWorker)
    assert fine == b"slept"
    assert await executor.run(order("echo", text="next"), timeout=30) == b"next"


async def test_a_job_that_holds_the_interpreter_is_killed(
    pools: dict[str, Executor], tmp_path: Path
) -> None:
    touch = tmp_path / "pid"
    with pytest.raises(WorkerTimedOut):
        await pools["jobs"].run(order("hang_in_native_code", touch=str(touch)), timeout=1)
    await until(lambda: not alive(int(touch.read_text())))


async def test_a_cancelled_job_is_killed(pools: dict[str, Executor], tmp_path: Path) -> None:
    touch = tmp_path / "pid"
    job = order("hang_in_native_code", touch=str(touch))
    running = asyncio.ensure_future(pools["jobs"].run(job, timeout=300))
    await until(lambda: touch.exists() and touch.read_text())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not alive(int(touch.read_text())))
    assert await pools["jobs"].run(b"", timeout=30) == b""


async def test_a_job_that_uses_up_its_cpu_time(pools: dict[str, Executor]) -> None:
    with pytest.raises(WorkerOutOfCpu) as caught:
        await pools["confined"].run(order("spin"), timeout=60)
    assert caught.value.seconds == 1.0
    assert await pools["confined"].run(b"", timeout=30) == b""


async def test_a_job_is_confined_where_it_runs(pools: dict[str, Executor]) -> None:
    executor = pools["confined"]
    assert await executor.run(order("allocate", size=1 << 20), timeout=30) == b"1048576"
    with pytest.raises(WorkerFailed, match="MemoryError"):
        await executor.run(order("allocate", size=8 * worker_jobs.MEMORY), timeout=30)
    if "seccomp" in available():
        with pytest.raises(WorkerFailed, match="PermissionError"):
            await executor.run(order("open_socket"), timeout=30)


async def test_no_process_runs_jobs_of_two_owners(pools: dict[str, Executor]) -> None:
    async def pid(owner: str) -> int:
        answer = await pools["confined"].run(order("describe"), timeout=30, owner=owner)
        return int(json.loads(answer)["pid"])

    one = await pid("one")
    assert await pid("one") == one
    assert await pid("two") != one


# Ray alone: what ends there is not only a worker.


async def parent_of_workers(executor: Executor, generations: int) -> int:
    """The process that started the fork server (2), or the fork server (1) of the workers."""
    pid = int(json.loads(await executor.run(order("describe"), timeout=30))["pid"])
    for _ in range(generations):
        pid = parent(pid)
    return pid


@pytest.mark.long
async def test_a_node_that_dies_is_a_crash_and_comes_back(
    ray_engine: ThreadedEngine, tmp_path: Path
) -> None:
    executor, touch = ThreadedExecutor(ray_engine), tmp_path / "pid"
    actor = await parent_of_workers(executor, 2)
    job = order("sleep", seconds=300, touch=str(touch))
    running = asyncio.ensure_future(executor.run(job, timeout=300))
    await until(lambda: touch.exists() and touch.read_text())
    os.kill(actor, signal.SIGKILL)
    with pytest.raises(WorkerCrashed, match="node ended") as caught:
        await running
    assert not isinstance(caught.value, NoWorker)
    await until(lambda: not alive(int(touch.read_text())))
    await until(lambda: executor.workers == 2)
    assert await executor.run(b"", timeout=30) == b""


@pytest.mark.slow
async def test_a_head_that_dies_fails_its_jobs_and_is_replaced(ray_engine: ThreadedEngine) -> None:
    executor = ThreadedExecutor(ray_engine)
    running = asyncio.ensure_future(executor.run(order("sleep", seconds=300), timeout=300))
    await asyncio.sleep(0.2)
    (head,) = (pid for pid in pids() if "gcs_server" in command(pid) and is_ours(pid))
    os.kill(head, signal.SIGKILL)
    with pytest.raises(NoWorker, match="Ray"):
        await running
    with pytest.raises(NoWorker):
        await executor.run(b"", timeout=30)
    await until(lambda: executor.workers == 2, START_SECONDS)
    assert await executor.run(order("echo", text="again"), timeout=30) == b"again"


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def is_ours(pid: int) -> bool:
    """Whether this test run has started a process."""
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = parent(pid)
    return False


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it never became true"
        await asyncio.sleep(0.01)
