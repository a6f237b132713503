"""Whether the upstream is asked at present: never for longer than it answers health checks.

A compile may take minutes, so the time that a call takes does not tell a busy upstream from a
frozen one. While calls wait, its health is checked; a check that fails ends them all at once, and
their work is done here. Further requests are not forwarded until a check succeeds again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from lazyfx_server.compiling.forwarding.upstream_calls import UpstreamFailureError
from lazyfx_server.growing_pause import GrowingPause

_log = logging.getLogger(__name__)

_BUSY_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 5.0
_FIRST_RETRY_SECONDS: Final = 0.1
_LAST_RETRY_SECONDS: Final = 5.0

T = TypeVar("T")


class UpstreamLink:
    """Decides whether to ask the upstream, and gives up on it.

    Args:
        address: For the log.
        is_serving: A health check: whether it answers within so many seconds, and serves.
        wait_seconds: How long a health check may take.
    """

    def __init__(
        self, address: str, is_serving: Callable[[float], Awaitable[bool]], wait_seconds: float
    ) -> None:
        self._address = address
        self._is_serving = is_serving
        self._wait_seconds = wait_seconds
        self._in_use = False
        self._told: bool | None = None
        self._paused_until = 0.0
        self._calls: set[asyncio.Task[Any]] = set()
        self._given_up: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._checking: asyncio.Task[None] | None = None
        self._generation = 0

    @property
    def in_use(self) -> bool:
        """Whether requests are forwarded at present."""
        return self._in_use

    @property
    def generation(self) -> int:
        """Changes when the upstream comes back: it may be another server by then."""
        return self._generation

    async def connect(self) -> None:
        """Check the upstream once, and go on doing so in the background."""
        await self._check()
        self._checking = asyncio.ensure_future(self._keep_checking())

    async def close(self) -> None:
        """Stop checking."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait({self._checking})
        self._told = None
        self._stop("this server stops", quiet=True)

    async def ask(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something that waits for the upstream.

        Raises:
            UpstreamFailureError: It is not in use, or is given up meanwhile.
            Exception: Whatever the work raised.
        """
        if not self._in_use:
            work.close()
            raise UpstreamFailureError("it is not in use", "unreachable")
        task = asyncio.ensure_future(work)
        self._calls.add(task)
        if len(self._calls) == 1:
            self._changed.set()
        try:
            await asyncio.wait({task})
            if task in self._given_up:
                raise UpstreamFailureError("it stopped answering", "unreachable")
            return task.result()
        finally:
            self._calls.discard(task)
            self._given_up.discard(task)
            if not task.done():  # the caller left
                task.cancel()
                task.add_done_callback(_retrieve)

    def give_up(self, reason: str, pause: float = 0.0) -> None:
        """Stop asking: all who wait go on without it.

        Args:
            reason: For the log.
            pause: Seconds until it is checked again.
        """
        if self._in_use:
            self._paused_until = time.monotonic() + pause
            self._stop(reason)
            self._changed.set()

    def _stop(self, reason: str, *, quiet: bool = False) -> None:
        self._in_use = False
        for task in self._calls:
            if not task.done():
                self._given_up.add(task)
                task.cancel()
        if self._told is not False and not quiet:
            self._told = False
            _log.warning(
                "the upstream %s is not asked at present: %s; this server does the work itself",
                self._address,
                reason,
            )

    async def _check(self) -> None:
        try:
            serves = await self._is_serving(self._wait_seconds)
        except Exception as error:  # noqa: BLE001 - whatever it raises, checking goes on
            self._stop(f"{type(error).__name__}")
            return
        if not serves:
            self._stop("it does not answer health checks in time, or is not ready")
        elif not self._in_use:
            self._in_use = True
            self._generation += 1
            if self._told is not True:
                self._told = True
                _log.warning("the upstream %s is asked from now on", self._address)

    async def _keep_checking(self) -> None:
        pause = GrowingPause(_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS)
        while True:
            if self._in_use:
                pause.reset()
                if not await self._stays_in_use(_BUSY_SECONDS if self._calls else _IDLE_SECONDS):
                    continue
            else:
                await asyncio.sleep(max(self._paused_until - time.monotonic(), pause.next()))
            await self._check()

    async def _stays_in_use(self, seconds: float) -> bool:
        """Wait for the next check, earlier if a first call begins; False if it is given up."""
        was_idle = not self._calls
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except asyncio.TimeoutError:
            return self._in_use
        if was_idle and self._in_use:
            await asyncio.sleep(_BUSY_SECONDS)
        return self._in_use


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
