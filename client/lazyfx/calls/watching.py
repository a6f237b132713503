"""Notices a server that has stopped answering although it is connected, such as a frozen one.

Its kernel still accepts what is sent, so gRPC learns of it only when a keepalive ping was lost.
Frequent pings would cost every server of a fleet for every idle client, and would be lost behind a
large message on a slow link. So the server's health is checked only while a call waits for it, and
only calls that have received nothing since the check began are given up. A check may itself wait
in line, behind a large message or because the server takes no more calls of one connection; so one
that is late is repeated over a connection of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final

import grpc

from lazyfx.flows import Place

# A call that has waited this long makes the client check whether the server still answers; after
# each answer, twice as long up to the second, because many clients may wait for one server.
QUIET_SECONDS: Final = 1.0
_LONGEST_QUIET_SECONDS: Final = 2.0
# How long the answer to a check may take, and to the one over a connection of its own, which a
# server that has much to do must first encrypt. All of this together is what a frozen server costs.
CHECK_SECONDS: Final = 1.2
SECOND_CHECK_SECONDS: Final = 0.8
ENCRYPTED_CHECK_SECONDS: Final = 1.8
_LOOK_SECONDS: Final = QUIET_SECONDS / 4
# The thread of a blocking client ends when no call has waited for so long.
_IDLE_SECONDS: Final = 30.0

HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"


class SilentServerError(grpc.RpcError):
    """A call was given up because its server does not answer health checks."""

    def code(self) -> grpc.StatusCode:
        """UNAVAILABLE, as if the connection had broken."""
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        """What has happened."""
        return "the server did not answer two health checks"

    def trailing_metadata(self) -> tuple[()]:
        """Nothing came from the server."""
        return ()


class _Wait:
    """A call that is waited for."""

    __slots__ = ("cancel", "due", "given_up", "place", "quiet", "since")

    def __init__(self, cancel: Callable[[], object], place: Place) -> None:
        self.cancel = cancel
        self.place = place
        self.since = time.monotonic()
        self.quiet = QUIET_SECONDS
        self.due = self.since + _jittered(self.quiet)
        self.given_up = False

    def server_has_answered(self, began: float) -> None:
        """A check that began then was answered: there is no hurry to make the next one."""
        if self.since < began:
            self.quiet = min(2 * self.quiet, max(self.quiet, _LONGEST_QUIET_SECONDS))
        self.due = max(self.due, began + _jittered(self.quiet))


class _Waits:
    """The calls that are waited for at present. Threads may share it."""

    def __init__(self) -> None:
        self._waits: dict[int, _Wait] = {}

    def __bool__(self) -> bool:
        return bool(self._waits)

    def begin(self, cancel: Callable[[], object], place: Place) -> _Wait:
        """A call is waited for from now on.

        Args:
            cancel: Cancels it, from any thread.
            place: Where it went.
        """
        wait = _Wait(cancel, place)
        self._waits[id(wait)] = wait
        return wait

    def end(self, wait: _Wait) -> None:
        """A call is no longer waited for."""
        del self._waits[id(wait)]

    def overdue(self) -> set[Place]:
        """The places whose servers are to be checked."""
        now = time.monotonic()
        return {wait.place for wait in list(self._waits.values()) if wait.due < now}

    def server_has_answered(self, place: Place, began: float) -> None:
        """A check of a place that began then was answered."""
        for wait in list(self._waits.values()):
            if wait.place == place:
                wait.server_has_answered(began)

    def give_up(self, place: Place, began: float) -> None:
        """Cancel the calls to a place that have been waited for since before a check began."""
        for wait in list(self._waits.values()):
            if wait.place == place and wait.since < began:
                wait.given_up = True
                wait.cancel()


class ThreadWatch:
    """Watches the calls of a blocking client, in a thread that exists while there are some.

    Args:
        is_silent: Makes a health check at a place; whether nothing answered.
        closing: Set when the client is closed.
    """

    def __init__(self, is_silent: Callable[[Place], bool], closing: threading.Event) -> None:
        self._is_silent = is_silent
        self._closing = closing
        self._waits = _Waits()
        self._lock = threading.Lock()
        self._runs = False

    def wait(
        self, cancel: Callable[[], object], place: Place, wait: Callable[[], bytes | None]
    ) -> bytes | None:
        """What `wait` returns or raises.

        Raises:
            SilentServerError: The server does not answer.
        """
        waiting = self._waits.begin(cancel, place)
        try:
            if not self._runs:
                with contextlib.suppress(RuntimeError):  # no thread may start: it is not watched
                    self._start()
            return wait()
        except grpc.RpcError:
            if waiting.given_up:
                raise SilentServerError from None
            raise
        finally:
            self._waits.end(waiting)

    def _start(self) -> None:
        with self._lock:
            if not self._runs:
                threading.Thread(target=self._watch, name="lazyfx-watch", daemon=True).start()
                self._runs = True  # if there was a thread for it; the thread waits for this lock

    def _watch(self) -> None:
        try:
            self._watch_until_idle()
        except BaseException:  # also what ends a thread at exit; it is raised again
            with self._lock:
                self._runs = False  # the next call starts another thread
            raise

    def _watch_until_idle(self) -> None:
        last_wait = time.monotonic()
        while not self._closing.wait(_LOOK_SECONDS):
            with self._lock:
                if self._waits:
                    last_wait = time.monotonic()
                elif time.monotonic() - last_wait > _IDLE_SECONDS:
                    self._runs = False
                    # A wait that began just now may have seen that this thread runs.
                    if not self._waits:
                        return
                    self._runs = True
            self._check_overdue()

    def _check_overdue(self) -> None:
        here: list[Place] = []
        checks = []
        for place in self._waits.overdue():
            check = threading.Thread(target=self._check_one, args=(place,), daemon=True)
            try:
                if here:  # one place needs no other thread
                    check.start()
                    checks.append(check)
                    continue
            except RuntimeError:
                pass  # this process may start no more threads
            here.append(place)
        for place in here:
            self._check_one(place)
        for check in checks:
            check.join()

    def _check_one(self, place: Place) -> None:
        began = time.monotonic()
        try:
            is_silent = self._is_silent(place)
        except Exception:  # noqa: BLE001 - the client was closed, or no other connection can be opened
            is_silent = False
        if is_silent:
            self._waits.give_up(place, began)
        else:
            self._waits.server_has_answered(place, began)


class TaskWatch:
    """Watches the calls of an asynchronous client, in a task that exists while there are some.

    Args:
        is_silent: Makes a health check at a place; whether nothing answered.
    """

    def __init__(self, is_silent: Callable[[Place], Awaitable[bool]]) -> None:
        self._is_silent = is_silent
        self._waits = _Waits()
        self._watching: asyncio.Task[None] | None = None
        self._is_closed = False

    async def close(self) -> None:
        """End the task; calls that are still waited for are no longer watched."""
        self._is_closed = True
        if (task := self._watching) is not None:
            task.cancel()
            await asyncio.wait([task])

    async def wait(
        self, cancel: Callable[[], object], place: Place, waited: Awaitable[bytes | None]
    ) -> bytes | None:
        """What `waited` returns or raises.

        Raises:
            SilentServerError: The server does not answer.
        """
        waiting = self._waits.begin(cancel, place)
        try:
            if self._watching is None and not self._is_closed:
                self._watching = asyncio.ensure_future(self._watch())
            return await waited
        except (grpc.RpcError, asyncio.CancelledError):
            if waiting.given_up and not is_being_cancelled():
                raise SilentServerError from None
            raise
        finally:
            self._waits.end(waiting)

    async def _watch(self) -> None:
        try:
            while self._waits:
                await asyncio.sleep(_LOOK_SECONDS)
                if overdue := self._waits.overdue():
                    checks = map(self._check_one, overdue)
                    await asyncio.gather(*checks, return_exceptions=True)
        finally:
            self._watching = None

    async def _check_one(self, place: Place) -> None:
        began = time.monotonic()
        try:
            is_silent = await self._is_silent(place)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            return  # the channel was closed, which has ended the calls
        except Exception:  # noqa: BLE001 - as in ThreadWatch
            is_silent = False
        if is_silent:
            self._waits.give_up(place, began)
        else:
            self._waits.server_has_answered(place, began)


def _jittered(seconds: float) -> float:
    """A little less, at random: what waits for one server shall not leave it in one moment."""
    return seconds * random.uniform(0.7, 1)  # noqa: S311 - no secret


def is_being_cancelled() -> bool:
    """Whether the current task is being cancelled; False on Python 3.10, which cannot tell."""
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is not None and cancelling() > 0


def is_silence(error: object) -> bool:
    """Whether there was no answer in time. Any other answer, a refusal too, is one."""
    code = error.code() if isinstance(error, grpc.Call) else None
    return code is grpc.StatusCode.DEADLINE_EXCEEDED
