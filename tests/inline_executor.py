"""An executor that runs jobs in threads of the test process.

It cannot stop a job that overruns, and a job that crashes takes the process down.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from lazyfx_server.execution import (
    CallFailed,
    CallRefused,
    ExecutorClosed,
    JobBytes,
    JobFunction,
    OnCall,
    ResultTooLarge,
    WorkerFailed,
    WorkerTimedOut,
)
from lazyfx_server.execution.executor import parts_of
from lazyfx_server.execution.job_calls import CallServer, set_server_call

_thread = threading.local()


def _call_server(question: bytes) -> bytes:
    """Call as the job of this thread may; threads that a job starts may not."""
    calling: CallServer | None = getattr(_thread, "calling", None)
    if calling is None:
        raise CallFailed("this process cannot call a server")
    return calling(question)


def _calling_loop(on_call: OnCall | None, loop: asyncio.AbstractEventLoop) -> CallServer:
    def calling(question: bytes) -> bytes:
        if on_call is None:
            raise CallFailed("this job may not call the server")

        async def answered() -> bytes:
            return await on_call(question)

        try:
            return asyncio.run_coroutine_threadsafe(answered(), loop).result()
        except CallRefused as refusal:
            raise CallFailed(str(refusal)) from refusal

    return calling


class InlineExecutor:
    """Runs jobs in threads of this process.

    Args:
        function: What runs a job.
        workers: Threads. More than one needs a `function` that is safe to call
            concurrently, which code that traces graphs is not.
        max_result_bytes: Largest result that is passed on.
    """

    def __init__(
        self, function: JobFunction, *, workers: int = 1, max_result_bytes: int = 1 << 30
    ) -> None:
        self._function = function
        self._workers = workers
        self._max_result_bytes = max_result_bytes
        self._threads: ThreadPoolExecutor | None = None
        self._free = asyncio.Semaphore(workers)
        self._closed = False

    @property
    def workers(self) -> int:
        """Jobs that can run at the same time."""
        return self._workers

    async def start(self) -> None:
        """Starts the threads."""
        set_server_call(_call_server)
        self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="lazyfx-job")

    async def run(
        self,
        job: JobBytes,
        *,
        timeout: float,
        owner: str | None = None,
        on_call: OnCall | None = None,
    ) -> bytes:
        """Runs one job; see `Executor.run`. A job that overruns keeps its thread until it ends."""
        del owner  # one process for all owners
        await self._free.acquire()
        if self._closed or self._threads is None:
            self._free.release()
            raise ExecutorClosed("the executor is not running")
        loop = asyncio.get_running_loop()
        calling = _calling_loop(on_call, loop)
        whole = b"".join(parts_of(job))
        future = loop.run_in_executor(self._threads, self._execute, calling, whole)
        future.add_done_callback(self._release)
        await asyncio.wait({future}, timeout=timeout)
        if not future.done():
            raise WorkerTimedOut(timeout)
        error = future.exception()
        if error is not None:
            raise WorkerFailed(type(error).__qualname__, str(error)) from error
        result = future.result()
        if len(result) > self._max_result_bytes:
            raise ResultTooLarge(len(result), self._max_result_bytes)
        return result

    def _execute(self, calling: CallServer, job: bytes) -> bytes:
        _thread.calling = calling
        try:
            result: object = self._function(job)
            if not isinstance(result, bytes):
                raise TypeError(f"the job function returned {type(result).__qualname__}")
            return result
        finally:
            del _thread.calling

    def _release(self, future: asyncio.Future[bytes]) -> None:
        self._free.release()
        if not future.cancelled():
            future.exception()  # marks it as seen: there may be no waiter left

    async def close(self) -> None:
        """Releases the threads; a running job ends in its own time."""
        self._closed = True
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
