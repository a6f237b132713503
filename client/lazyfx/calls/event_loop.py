"""An event loop in a thread of its own, which ends with the last who could use it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from lazyfx.calls import forking
from lazyfx.errors import ClosedError, LazyfxError

Answer = TypeVar("Answer")

_JOIN_SECONDS = 5.0


class LoopThread:
    """An event loop in a daemon thread. Threads may share it.

    The thread ends after `stop`, and when nothing refers to the loop any more.

    Raises:
        ForkedProcessError: This process cannot use clients; see `lazyfx.calls.forking`.
    """

    def __init__(self) -> None:
        forking.mark_grpc_used()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_report)
        forking.leak_in_children(self._loop)
        self._thread = threading.Thread(
            target=_run, args=(self._loop,), name="lazyfx-client", daemon=True
        )
        self._thread.start()
        self._lock = threading.RLock()  # the collector may close a client while this is held
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        self._closed = False
        self._stop = weakref.finalize(self, _stop, self._loop)
        self._stop.atexit = False  # the thread ends with the process

    def run(self, work: Coroutine[Any, Any, Answer], seconds: float | None = None) -> Answer:
        """Run a coroutine in the loop and wait for it.

        Raises:
            ClosedError: The loop was stopped, before or meanwhile.
            ForkedProcessError: The loop runs in the process that this one was forked from.
            concurrent.futures.TimeoutError: It did not end in that many seconds.
        """
        future = self._start(work)
        try:
            return future.result(seconds)
        except concurrent.futures.CancelledError:
            if self._closed:
                raise ClosedError("the client was closed while this call was waiting") from None
            raise
        except BaseException:  # also Ctrl-C while waiting: the call must not run on behind
            future.cancel()
            raise
        finally:
            with self._lock:
                self._waiting.discard(future)

    def _start(self, work: Coroutine[Any, Any, Answer]) -> concurrent.futures.Future[Answer]:
        try:
            self.require_open()
            self._require_other_thread()
            with self._lock:
                self.require_open()
                future = asyncio.run_coroutine_threadsafe(work, self._loop)
                self._waiting.add(future)
        except LazyfxError:
            work.close()
            raise
        return future

    def _require_other_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise LazyfxError(
                "the client cannot be called from its own callbacks (on_upload, on_progress): "
                "the call would wait for itself"
            )

    def require_open(self) -> None:
        """Fail at once where nothing can be run any more.

        Raises:
            ClosedError: The loop was closed.
            ForkedProcessError: The loop runs in the process that this one was forked from.
        """
        forking.require_not_forked()
        if self._closed:
            raise ClosedError

    def close(self) -> bool:
        """Take no more work, and fail what is being waited for; tells whether it was open.

        Raises:
            ForkedProcessError: The loop runs in the process that this one was forked from.
        """
        forking.require_not_forked()
        with self._lock:
            was_open, self._closed = not self._closed, True
            waiting = list(self._waiting)
        for future in waiting:
            future.cancel()
        return was_open

    def finish(self, work: Coroutine[Any, Any, object], seconds: float) -> None:
        """Run what is left to do after `close`, for so many seconds at most, and end the thread."""
        from_outside = threading.current_thread() is not self._thread
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            if from_outside:
                with contextlib.suppress(concurrent.futures.TimeoutError):
                    future.result(seconds)
        finally:
            self._stop()
        if from_outside:
            self._thread.join(_JOIN_SECONDS)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """What the thread does; it refers to nothing but the loop."""
    try:
        loop.run_forever()
        # Calls that were cut short get a last turn to clean up.
        loop.run_until_complete(_cancel_all())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1.0)


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    """Make the thread end, without waiting: the garbage collector calls it too, from anywhere."""
    if not forking.is_forked():
        with contextlib.suppress(RuntimeError):  # it is closed already
            loop.call_soon_threadsafe(loop.stop)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Whoever waited for a call has been told that the client was closed."""
    if not isinstance(context.get("exception"), ClosedError):
        loop.default_exception_handler(context)
