"""The executor that serves strangers: each job alone in a process that can be killed.

N workers, each a process of its own with its own socket, rather than a pool
that shares queues: when one crashes, hangs or is killed, its job fails and no
other, and a new process takes its place in milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor

from lazyfx_server.execution.answering import CallBounds
from lazyfx_server.execution.executor import (
    ExecutionError,
    ExecutorClosed,
    JobBytes,
    JobFunction,
    NoWorker,
    OnRestart,
    WorkerTimedOut,
)
from lazyfx_server.execution.job_calls import OnCall
from lazyfx_server.execution.launching import ProcessSource
from lazyfx_server.execution.worker_process import Worker, WorkerLost, WorkerSpec

# Workers that may die, one after the other, before they have taken a job.
_MAX_LOST = 3


class ProcessExecutor:
    """Runs jobs in worker processes.

    Args:
        function: What runs a job; importable by its qualified name.
        processes: Where workers come from; start a fork server before gRPC is used.
        workers: Processes, and so jobs at the same time.
        max_jobs: Jobs after which a worker is replaced, because Python code that
            torch generates is never freed.
        max_result_bytes: Largest result that is passed on.
        initializer: Called once in each worker before its first job; importable.
        start_timeout: Seconds until a new worker must be ready. The first one waits
            for the fork server's imports.
        cancel_grace: Seconds that a job may go on when its caller has gone away; a
            worker that ends its job in time need not be replaced.
        cpu_seconds: Processor seconds that one job may use; None for no bound.
        calls: Bounds of the calls that jobs make.
        on_restart: Told of each replaced worker.
    """

    def __init__(
        self,
        function: JobFunction,
        *,
        processes: ProcessSource,
        workers: int,
        max_jobs: int = 500,
        max_result_bytes: int = 1 << 30,
        initializer: Callable[[], None] | None = None,
        start_timeout: float = 120.0,
        cancel_grace: float = 1.0,
        cpu_seconds: float | None = None,
        calls: CallBounds | None = None,
        on_restart: OnRestart | None = None,
    ) -> None:
        if workers < 1 or max_jobs < 1:
            raise ValueError("workers and max_jobs must be at least 1")
        self._spec = WorkerSpec(
            function, initializer, max_result_bytes, start_timeout, cpu_seconds,
            calls or CallBounds(),
        )  # fmt: skip
        self._processes = processes
        self._workers = workers
        self._max_jobs = max_jobs
        self._cancel_grace = cancel_grace
        self._on_restart = on_restart
        self._live: set[Worker] = set()
        self._idle = _IdleWorkers()
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="lazyfx-spawn")
        self._closed = False

    @property
    def workers(self) -> int:
        """Jobs that can run at the same time."""
        return self._workers

    @property
    def pids(self) -> frozenset[int]:
        """Process ids of the workers that are up."""
        return frozenset(worker.pid for worker in self._live)

    async def start(self) -> None:
        """Starts the workers; see `Executor.start`."""
        launches = [asyncio.ensure_future(self._launch()) for _ in range(self._workers)]
        try:
            await asyncio.gather(*launches)
        except BaseException:
            for launch in launches:
                launch.cancel()
            await asyncio.gather(*launches, return_exceptions=True)
            await self.close()
            raise

    async def run(
        self,
        job: JobBytes,
        *,
        timeout: float,
        owner: str | None = None,
        on_call: OnCall | None = None,
    ) -> bytes:
        """Runs one job; see `Executor.run`.

        A worker that has run jobs of another owner is replaced before it runs this one: what
        a job could have left behind in it reaches no other owner.

        A job whose worker had died before it could begin is given to another
        worker, a few times. A call that is cancelled leaves its job `cancel_grace`
        seconds to end; then the worker is killed.
        """
        for _ in range(_MAX_LOST):
            with contextlib.suppress(WorkerLost):
                return await self._attempt(job, timeout, owner, on_call)
        return await self._attempt(job, timeout, owner, on_call)

    async def _attempt(
        self, job: JobBytes, timeout: float, owner: str | None, on_call: OnCall | None
    ) -> bytes:
        if self._closed:
            raise ExecutorClosed("the executor is closed")
        worker = await self._worker_for(owner)
        answer = worker.begin(job, on_call)
        try:
            await asyncio.wait({answer}, timeout=timeout)
        except asyncio.CancelledError:
            self._background(self._let_finish(worker, answer, min(timeout, self._cancel_grace)))
            raise
        if not answer.done():
            worker.kill("timeout")
            raise WorkerTimedOut(timeout)
        self._give_back(worker)
        if answer.cancelled():
            raise ExecutorClosed("the executor was closed while the job ran")
        return answer.result()

    async def _worker_for(self, owner: str | None) -> Worker:
        worker = await self._idle.take(owner)
        if owner is None:
            return worker
        while worker.owner not in (None, owner):
            worker.retire("recycled")
            worker = await self._idle.take(owner)
        worker.owner = owner
        return worker

    async def _let_finish(
        self, worker: Worker, answer: asyncio.Future[bytes], seconds: float
    ) -> None:
        await asyncio.wait({answer}, timeout=seconds)
        if not answer.done():
            worker.kill("cancelled")
            return
        if not answer.cancelled():
            answer.exception()  # marks it as retrieved: no caller waits for it
        self._give_back(worker)

    def _give_back(self, worker: Worker) -> None:
        if not worker.usable:
            return  # it is on its way out, and _worker_gone replaces it
        if worker.jobs >= self._max_jobs:
            worker.retire("recycled")
        else:
            self._idle.put(worker)

    async def _launch(self) -> None:
        worker = await Worker.launch(self._processes, self._spawner, self._spec, self._worker_gone)
        self._live.add(worker)
        if worker.gone.done():
            self._worker_gone(worker)
        elif self._closed:
            worker.kill("recycled")
        elif worker.usable:
            self._idle.put(worker)

    def _worker_gone(self, worker: Worker) -> None:
        if worker not in self._live:
            return  # it never became ready: whoever started it has been told
        self._live.discard(worker)
        self._idle.remove(worker)
        if self._closed:
            return
        if self._on_restart is not None:
            self._on_restart(worker.reason or "crash")
        self._background(self._replace())

    async def _replace(self) -> None:
        delay = 0.1
        while not self._closed:
            try:
                await self._launch()
            except ExecutionError as error:
                if not self._live:  # no worker is left for those who wait
                    self._idle.refuse(NoWorker(str(error)))
                await asyncio.sleep(delay)
                delay = min(2 * delay, 5.0)
            else:
                return

    def _background(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stops the workers; a job that still runs fails with ExecutorClosed."""
        self._closed = True
        self._idle.refuse(ExecutorClosed("the executor is closed"))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        workers = list(self._live)
        for worker in workers:
            if worker.busy:
                worker.kill("recycled")
            else:
                worker.retire("recycled")
        if workers:
            await asyncio.wait([worker.gone for worker in workers], timeout=10.0)
        self._spawner.shutdown(wait=False)


class _IdleWorkers:
    """Workers without a job. The one used last is taken first; callers wait in line."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []
        self._waiting: deque[asyncio.Future[Worker]] = deque()

    def put(self, worker: Worker) -> None:
        while self._waiting:
            caller = self._waiting.popleft()
            if not caller.done():
                caller.set_result(worker)
                return
        self._idle.append(worker)

    async def take(self, owner: str | None) -> Worker:
        """A worker that has run only this owner's jobs, if one is idle; else any."""
        self._idle = [worker for worker in self._idle if worker.usable]
        for place in reversed(range(len(self._idle))):
            if owner is None or self._idle[place].owner in (None, owner):
                return self._idle.pop(place)
        if self._idle:
            return self._idle.pop(0)
        caller: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(caller)
        try:
            return await caller
        except asyncio.CancelledError:
            if caller.done() and not caller.cancelled() and caller.exception() is None:
                self.put(caller.result())
            raise

    def remove(self, worker: Worker) -> None:
        with contextlib.suppress(ValueError):
            self._idle.remove(worker)

    def refuse(self, error: ExecutionError) -> None:
        while self._waiting:
            caller = self._waiting.popleft()
            if not caller.done():
                caller.set_exception(error)
