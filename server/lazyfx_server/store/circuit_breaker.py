"""A remote store that may be slow, frozen or away, and never holds up a request for long.

A caller waits `wait_seconds` for an answer to begin, and then for a value at `SLOWEST_BYTES` a
second at least. The first operation that takes longer opens the breaker: all who wait get their
error at once, and further operations are refused without asking, until a probe in the background
is answered. An operation that is given up is not cancelled: it ends by the time limits of the
connection, so that no connection is left in the middle of an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from lazyfx_server.growing_pause import GrowingPause
from lazyfx_server.store.contract import (
    OnChange,
    RemoteStore,
    SkippedError,
    StoreError,
    StoreStats,
    UnreachableError,
)

SLOWEST_BYTES: Final = 16 << 20
"""Bytes a second: a large value that is sent more slowly is given up."""

# Nobody waits for a write, so it may take longer.
_WRITE_SECONDS: Final = 2.0
_PROBE_SECONDS: Final = 1.0
_FIRST_RETRY_SECONDS: Final = 0.1
_LAST_RETRY_SECONDS: Final = 5.0
_REFRESH_SECONDS: Final = 15.0
_CLOSE_SECONDS: Final = 1.0
_MAX_AT_ONCE: Final = 32
# Turns of the event loop that an answer gets which has arrived while this process was busy.
_TURNS: Final = 5

T = TypeVar("T")

Probe = Callable[[], Awaitable[None]]
"""Whether a store may be used. Raises UnreachableError, or another StoreError if it must not."""


class CircuitBreaker:
    """Bounds the time that is spent on a remote store. Begins open: `connect` closes it.

    Args:
        inner: The store.
        wait_seconds: How long a caller waits for an answer to begin.
        probe: Asked before the store is used, and from time to time after that; `inner.refresh`
            when left out.
        on_change: Told when the breaker opens or closes.
        hint: What an operator may have to change if the store does not answer; begins with "; ".

    Attributes:
        wait_seconds: As given.
    """

    def __init__(
        self,
        inner: RemoteStore,
        *,
        wait_seconds: float = 0.05,
        probe: Probe | None = None,
        on_change: OnChange | None = None,
        hint: str = "",
    ) -> None:
        self._inner = inner
        self.wait_seconds = wait_seconds
        self._write_seconds = max(_WRITE_SECONDS, wait_seconds)
        self._probe = probe or inner.refresh
        self._on_change = on_change
        self._hint = hint
        self._closed = asyncio.Event()
        self._opened = asyncio.Event()
        self._opened.set()
        self._room = asyncio.Semaphore(_MAX_AT_ONCE)
        self._work: set[asyncio.Future[Any]] = set()
        self._probing: asyncio.Task[None] | None = None
        self._problem = StoreError("it is not connected yet")

    @property
    def name(self) -> str:
        """The inner store's name."""
        return self._inner.name

    @property
    def available(self) -> bool:
        """Whether the store is asked at present."""
        return self._closed.is_set()

    async def connect(self) -> None:
        """Probes the store, and goes on doing so in the background.

        Raises:
            UnreachableError: It does not answer. It will be used when it does.
            StoreError: It must not be used; see `Probe`.
        """
        try:
            await self._probe_once()
        finally:
            self._probing = asyncio.ensure_future(self._keep_probing())
        if not self.available:
            raise self._problem

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        async with self._asking():
            reading = await self._within(self.wait_seconds, self._inner.begin_get(key))
            if reading is None:
                return None
            seconds = self.wait_seconds + reading.size / SLOWEST_BYTES
            return await self._within(seconds, reading.rest())

    async def put(self, key: str, value: bytes) -> None:
        """See `Store.put`. Meant for the background: it may take seconds."""
        async with self._asking(self._write_seconds):
            await self._within(self._write_limit(value), self._inner.put(key, value))

    async def put_if_absent(self, key: str, value: bytes) -> bool:
        """See `Store.put_if_absent`."""
        async with self._asking():
            return await self._within(
                self._write_limit(value), self._inner.put_if_absent(key, value)
            )

    async def contains(self, keys: Iterable[str]) -> set[str]:
        """See `Store.contains`."""
        wanted = list(keys)
        turns = -(-len(wanted) // _MAX_AT_ONCE)  # a bucket is asked for each key
        seconds = self.wait_seconds * max(1, turns)
        async with self._asking():
            return await self._within(seconds, self._inner.contains(wanted))

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        async with self._asking():
            await self._within(self.wait_seconds, self._inner.delete(key))

    async def quarantine(self, key: str) -> None:
        """See `QuarantiningStore.quarantine`."""
        async with self._asking():
            await self._within(self.wait_seconds, self._inner.quarantine(key))

    async def ask(self, question: Callable[[], Awaitable[T]], *, requests: int = 1) -> T:
        """The answer to any other question that is as small as `contains` of one key.

        Args:
            question: Asked.
            requests: How many requests the store makes of it at most, one after the other.
        """
        async with self._asking():
            return await self._within(self.wait_seconds * requests, question())

    def stats(self) -> StoreStats:
        """See `Store.stats`."""
        return self._inner.stats()

    def tiers(self) -> Mapping[str, StoreStats]:
        """See `Store.tiers`."""
        return self._inner.tiers()

    async def close(self) -> None:
        """Waits for operations under way, which end by the limits of the connection."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait({self._probing})
        if self._work:
            await asyncio.wait(self._work, timeout=_CLOSE_SECONDS)
        self._on_change = None
        self._open(UnreachableError("it is closed"))
        await self._inner.close()

    @contextlib.asynccontextmanager
    async def _asking(self, seconds: float | None = None) -> AsyncIterator[None]:
        """Waits until there is room to ask: a crowd of our own is not the store's failure."""
        if not self.available:
            raise SkippedError(f"{self.name} is not used at present: {self._problem}")
        room = asyncio.ensure_future(self._room.acquire())
        try:
            if not await _ends(room, seconds or self.wait_seconds):
                raise SkippedError(f"{self.name} has {_MAX_AT_ONCE} requests in flight")
            yield
        finally:
            if not room.cancel():
                self._room.release()

    async def _within(self, seconds: float, work: Awaitable[T]) -> T:
        try:
            return await self._answer(seconds, work, self._opened)
        except UnreachableError as error:
            if self.available:
                self._open(error)
            raise
        except StoreError:
            raise
        except Exception as error:  # whatever a library makes of an answer that is none
            raise StoreError(f"{self.name}: {type(error).__name__}: {error}") from error

    async def _answer(
        self, seconds: float, work: Awaitable[T], given_up: asyncio.Event | None = None
    ) -> T:
        """What `work` returns, unless that takes too long or all work is given up."""
        task: asyncio.Future[T] = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._forget)
        waiting: set[asyncio.Future[Any]] = {task}
        ended = None
        if given_up is not None:
            ended = asyncio.ensure_future(given_up.wait())
            waiting.add(ended)
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for _ in range(_TURNS):
                if task.done():
                    break
                await asyncio.sleep(0)
        finally:
            if ended is not None:
                ended.cancel()
        if task.done():
            return task.result()
        if given_up is not None and given_up.is_set():
            raise UnreachableError(f"{self.name} is no longer used: {self._problem}")
        raise UnreachableError(f"{self.name} did not answer within {seconds:.2g} s{self._hint}")

    def _write_limit(self, value: bytes) -> float:
        return self._write_seconds + len(value) / SLOWEST_BYTES

    def _forget(self, task: asyncio.Future[Any]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it may have left

    def _open(self, problem: StoreError) -> None:
        told = type(problem) is type(self._problem) and not self.available
        # A copy: the traceback of the original holds the value of a failed write.
        self._problem = type(problem)(str(problem))
        self._closed.clear()
        self._opened.set()
        if not told and self._on_change is not None:
            self._on_change(self.name, problem)

    async def _probe_once(self) -> None:
        try:
            await self._answer(_PROBE_SECONDS, self._probe())
            # A store that answers, but too slowly to be of use, stays as it is.
            await self._answer(self.wait_seconds, self._inner.refresh())
        except StoreError as error:
            self._open(error)
        except Exception as error:  # noqa: BLE001 - whatever a library raises, probing goes on
            self._open(StoreError(f"{self.name}: {type(error).__name__}: {error}"))
        else:
            if not self.available:
                self._opened.clear()
                self._closed.set()
                if self._on_change is not None:
                    self._on_change(self.name, None)

    async def _keep_probing(self) -> None:
        pause = GrowingPause(_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS)
        while True:
            opened = asyncio.ensure_future(self._opened.wait())
            try:
                stays_closed = not await _ends(opened, _REFRESH_SECONDS)
            finally:
                opened.cancel()
            if stays_closed:
                pause.reset()
            else:
                await asyncio.sleep(pause.next())
            await self._probe_once()


async def _ends(task: asyncio.Future[Any], seconds: float) -> bool:
    """Whether it ends in time. Unlike `asyncio.wait_for`, this never loses a cancellation."""
    done, _ = await asyncio.wait({task}, timeout=seconds)
    return bool(done)
