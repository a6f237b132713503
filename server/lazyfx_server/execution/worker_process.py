"""One worker process, seen from the server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Final, cast

from lazyfx_server.execution.answering import CallResponder
from lazyfx_server.execution.executor import (
    JobBytes,
    NoWorker,
    RestartReason,
    ResultTooLarge,
    WorkerCrashed,
    WorkerFailed,
    WorkerOutOfCpu,
    parts_of,
)
from lazyfx_server.execution.frames import HEADER, SMALL, Kind, unpack_error
from lazyfx_server.execution.job_calls import OnCall
from lazyfx_server.execution.launching import ProcessSource
from lazyfx_server.execution.process_control import WorkerSpec, bound_cpu, ending, spawn

_EXIT_SECONDS: Final = 2.0
"""How long a retiring worker may take for its clean-up."""
_REAP_SECONDS: Final = 2.0
"""How long to wait for its exit status."""
_REAP_INTERVAL: Final = 0.005


class WorkerLost(NoWorker):
    """The worker died before it took the job, so another one may run it."""


class Worker(asyncio.Protocol):
    """A process that runs one job at a time.

    It is dead when the fork server says so, not when the socket closes: a process that a job left
    behind may keep the socket open.

    Attributes:
        pid: Its process id, which is also its process group id.
        jobs: Number of jobs it has been given.
        reason: Why it stops or stopped; None while it should run.
        owner: The owner of the jobs it has run; None before the first job.
    """

    def __init__(
        self, process: BaseProcess, spec: WorkerSpec, on_gone: Callable[[Worker], None]
    ) -> None:
        self.jobs = 0
        self.reason: RestartReason | None = None
        self.owner: str | None = None
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._process: BaseProcess | None = process
        self._sentinel = process.sentinel
        assert process.pid is not None, "the process has been started"
        self.pid = process.pid
        self._spec = spec
        self._on_gone = on_gone
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self._calls = CallResponder(spec.calls, self._write, self._read_more)
        self._started = False
        self._exited = False
        self._disconnected = False
        self._reap_until = 0.0
        loop.add_reader(self._sentinel, self._process_ended)

    @classmethod
    async def launch(
        cls,
        processes: ProcessSource,
        spawner: ThreadPoolExecutor,
        spec: WorkerSpec,
        on_gone: Callable[[Worker], None],
    ) -> Worker:
        """Starts a process and waits until it can take a job.

        Args:
            processes: Starts the process.
            spawner: A thread for that, because it blocks.
            spec: How to start it.
            on_gone: Called in the event loop when a worker dies after it became ready.

        Raises:
            WorkerCrashed: It did not become ready.
        """
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        try:
            process = await loop.run_in_executor(spawner, spawn, processes, theirs, spec)
        except (OSError, EOFError) as error:
            ours.close()
            raise WorkerCrashed(f"a worker could not be started: {error!r}") from error
        except BaseException:
            # A worker that is still being forked will find the connection closed and exit.
            ours.close()
            raise
        worker = cls(process, spec, on_gone)
        try:
            await loop.create_unix_connection(lambda: worker, sock=ours)
            await asyncio.wait_for(asyncio.shield(worker.ready), spec.start_timeout)
        except asyncio.TimeoutError as error:
            raise WorkerCrashed(
                f"a worker was not ready within {spec.start_timeout:g} s"
            ) from error
        finally:
            if not worker.ready.done() or worker.ready.exception() is not None:
                worker.kill("crash")
        return worker

    @property
    def usable(self) -> bool:
        """Whether it can take a job, as far as is known."""
        return self.reason is None and not self._exited and not self._disconnected

    @property
    def busy(self) -> bool:
        """Whether it has a job."""
        return self._answer is not None

    def begin(self, job: JobBytes, on_call: OnCall | None = None) -> asyncio.Future[bytes]:
        """Give it a job; it must be idle.

        Args:
            job: What its function is called with, in one piece or in parts.
            on_call: Answers the calls that the job makes.

        Returns:
            A future of the result; fails with WorkerLost, WorkerCrashed, WorkerFailed or
            ResultTooLarge. It is cancelled when the worker is killed on purpose.
        """
        assert self._answer is None, "one job at a time"
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self.jobs += 1
        self._answer = answer
        self._started = False
        if self._transport is None or self.gone.done():
            self._answer = None
            answer.set_exception(WorkerLost("the worker had ended"))
            return answer
        if self._spec.cpu_seconds is not None:
            bound_cpu(self.pid, self._spec.cpu_seconds)
        self._calls.begin(on_call)
        answer.add_done_callback(lambda _: self._calls.end())
        self._write(Kind.JOB, *parts_of(job))
        return answer

    def _write(self, kind: Kind, *parts: bytes | memoryview) -> None:
        if self._transport is None or self._disconnected:
            return
        small = bytearray(HEADER.pack(kind, sum(len(part) for part in parts)))
        for part in parts:
            if len(part) <= SMALL:
                small += part
                continue
            self._transport.write(bytes(small))
            self._transport.write(part)
            small.clear()
        if small:
            self._transport.write(bytes(small))

    def _read_more(self, more: bool) -> None:
        """Resume or pause reading: paused while enough of its calls are pending."""
        transport = cast("asyncio.Transport", self._transport)
        if transport is None or transport.is_closing():
            return
        if more:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def retire(self, reason: RestartReason) -> None:
        """Ask it to exit; it is killed if it does not."""
        if self.reason is None:
            self.reason = reason
        if self._transport is not None:
            self._transport.close()
        self._loop.call_later(_EXIT_SECONDS, self._kill_group)

    def kill(self, reason: RestartReason) -> None:
        """Kill it and all processes that its job started."""
        if self.reason is None:
            self.reason = reason
        if self._answer is not None and reason != "crash":
            self._answer.cancel()
        self._kill_group()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came from the worker."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(buffer)
            most = self._calls.bounds.bytes if kind == Kind.CALL else self._spec.max_result_bytes
            if length > max(most, SMALL):
                self.kill("crash")  # our workers never send that: do not wait for its bytes
                return
            end = HEADER.size + length
            if len(buffer) < end:
                return
            body = bytes(memoryview(buffer)[HEADER.size : end])
            del buffer[:end]
            self._frame(kind, body)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The socket closed: the worker is dead, dying or exiting."""
        self._disconnected = True
        if self.reason is None:
            self._kill_group()
        self._settle()

    def _frame(self, kind: int, body: bytes) -> None:
        if kind == Kind.STARTED:
            self._started = True
            return
        if kind == Kind.CALL:
            if not self._calls.take(body):
                self.kill("crash")  # it makes more calls than any job needs
            return
        if kind == Kind.READY:
            if not self.ready.done():
                self.ready.set_result(None)
            return
        if kind == Kind.START_FAILED:
            if not self.ready.done():
                name, message = unpack_error(body)
                text = f"a worker's initializer raised {name}: {message}"
                self.ready.set_exception(WorkerCrashed(text))
            return
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return
        if kind == Kind.RESULT:
            answer.set_result(body)
        elif kind == Kind.TOO_LARGE:
            answer.set_exception(ResultTooLarge(int(body), self._spec.max_result_bytes))
        else:
            answer.set_exception(WorkerFailed(*unpack_error(body)))

    def _process_ended(self) -> None:
        self._loop.remove_reader(self._sentinel)
        self._exited = True
        self._reap_until = self._loop.time() + _REAP_SECONDS
        self._kill_group()  # processes that the job left running
        if self._transport is None:
            self._disconnected = True
        elif not self._disconnected:
            # Its last frames may still be in the socket, which a stray process may keep open.
            self._loop.call_later(0.2, self._transport.abort)
        self._settle()

    def _settle(self) -> None:
        if not (self._exited and self._disconnected) or self.gone.done():
            return
        exitcode = self._process.exitcode if self._process else None
        if exitcode is None and self._loop.time() < self._reap_until:
            # The kernel closes a dying process's files, including the sentinel, before its status
            # can be read; or another thread of this process is reading it right now.
            self._loop.call_later(_REAP_INTERVAL, self._settle)
            return
        how = ending(exitcode)
        self._process = None  # close its pipes now, not at the next garbage collection
        if not self.ready.done():
            self.ready.set_exception(WorkerCrashed(f"a new worker {how}"))
            self.ready.exception()  # mark it as retrieved: the starter may have gone away
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done() and exitcode == -signal.SIGXCPU:
            self.reason = self.reason or "timeout"
            answer.set_exception(WorkerOutOfCpu(self._spec.cpu_seconds or 0.0))
        if answer is not None and not answer.done():
            crash = WorkerCrashed if self._started else WorkerLost
            answer.set_exception(crash(f"the worker {how} while it had the job"))
        self.gone.set_result(None)
        self._on_gone(self)

    def _kill_group(self) -> None:
        if self.gone.done():
            return  # the number may have been reused by now
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            # No such group: all are dead, or the new process has not created it yet.
            if self._process is not None and not self._exited:
                self._process.kill()
