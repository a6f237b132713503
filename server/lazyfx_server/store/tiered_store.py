"""A fast store over a durable one.

Reads fill the fast tier; writes reach the durable tier in the background. A failure of a tier
counts as a miss: a cache must never fail a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from lazyfx_server.store.contract import (
    OnError,
    OnRecovered,
    Store,
    StoreError,
    StoreStats,
    checked_key,
)
from lazyfx_server.store.memory_store import MemoryStore
from lazyfx_server.store.reported_failures import ReportedFailures

REFRESH_EVERY: Final = 64
"""After this many hits in the fast tier, the entry is touched in the durable one;
otherwise the hottest entries would look like the oldest there."""


class TieredStore:
    """Two stores as one; either may itself be tiered. Never raises StoreError.

    Args:
        upper: The fast store, which is asked first.
        lower: The durable store.
        on_error: Called for each failed operation of a tier.
        on_recovered: Called for each success of an operation that has failed before.
        max_pending_bytes: Bytes of values that may be waiting to be written to the lower tier.
        waits_when_full: Whether further puts block; otherwise they leave the lower tier out, and
            are reported as failed there.
    """

    def __init__(
        self,
        upper: Store,
        lower: Store,
        *,
        on_error: OnError | None = None,
        on_recovered: OnRecovered | None = None,
        max_pending_bytes: int = 64 << 20,
        waits_when_full: bool = True,
    ) -> None:
        self._upper = upper
        self._lower = lower
        self._failures = ReportedFailures(on_error, on_recovered)
        self._max_pending_bytes = max_pending_bytes
        self._waits_when_full = waits_when_full
        self._pending: dict[str, tuple[bytes | None, asyncio.Task[None]]] = {}
        self._pending_bytes = 0
        self._refreshing: set[asyncio.Task[None]] = set()
        self._changes = 0
        self._upper_hits = 0

    def trim(self) -> None:
        """Drop half of what is in memory only to be fast."""
        if isinstance(self._upper, MemoryStore):
            self._upper.trim()

    @property
    def name(self) -> str:
        """The names of both tiers."""
        return f"{self._upper.name}+{self._lower.name}"

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        checked_key(key)
        value = await self._failures.result(self._upper, "get", key, self._upper.get(key))
        if value is not None:
            self._refresh(key)
            return value
        if key in self._pending:  # still being written: the lower tier may hold an older value
            return self._pending[key][0]
        changes = self._changes
        value = await self._failures.result(self._lower, "get", key, self._lower.get(key))
        if value is not None and changes == self._changes:  # else it may be outdated by now
            await self._failures.result(self._upper, "put", key, self._upper.put(key, value))
        return value

    async def put(self, key: str, value: bytes) -> None:
        """See `Store.put`. Returns once the upper tier has it and the write queue has room."""
        checked_key(key)
        if not self._waits_when_full and self._pending_bytes > self._max_pending_bytes:
            full = StoreError("too many bytes wait to be written")
            self._failures.report(self._lower, "put", key, full)
            # Counted before and after, so that no reader puts the lower tier's value back.
            self._changes += 1
            await self._failures.result(self._upper, "put", key, self._upper.put(key, value))
            self._changes += 1
            return
        task = self._write_behind(key, value)
        await self._failures.result(self._upper, "put", key, self._upper.put(key, value))
        if self._waits_when_full and self._pending_bytes > self._max_pending_bytes:
            await asyncio.wait({task})

    async def put_if_absent(self, key: str, value: bytes) -> bool:
        """See `Store.put_if_absent`. The lower tier decides; if it fails, the upper one does."""
        checked_key(key)
        if key in self._pending:
            await asyncio.wait({self._pending[key][1]})
        self._changes += 1
        decided = await self._failures.result(
            self._lower, "put", key, self._lower.put_if_absent(key, value)
        )
        self._changes += 1
        if decided is None:
            decided = await self._failures.result(
                self._upper, "put", key, self._upper.put_if_absent(key, value)
            )
        elif decided:
            await self._failures.result(self._upper, "put", key, self._upper.put(key, value))
        return bool(decided)

    async def contains(self, keys: Iterable[str]) -> set[str]:
        """See `Store.contains`."""
        wanted = set(keys)
        for key in wanted:
            checked_key(key)
        if not wanted:
            return set()
        some = next(iter(wanted))
        deleted = {key for key in wanted if key in self._pending and self._pending[key][0] is None}
        found = {key for key in wanted if key in self._pending} - deleted
        # Ask both tiers for all keys: a lookup counts as a use and keeps an entry alive.
        for tier in (self._upper, self._lower):
            answer = await self._failures.result(tier, "contains", some, tier.contains(wanted))
            found |= answer or set()
        return found - deleted

    async def delete(self, key: str) -> None:
        """See `Store.delete`. Returns once both tiers have deleted it."""
        checked_key(key)
        task = self._write_behind(key, None)
        await self._failures.result(self._upper, "delete", key, self._upper.delete(key))
        await asyncio.wait({task})

    async def flush(self, keys: Iterable[str]) -> None:
        """Wait until what was put or deleted under these keys is in the lower tier, or failed."""
        if tasks := {self._pending[key][1] for key in keys if key in self._pending}:
            await asyncio.wait(tasks)

    def stats(self) -> StoreStats:
        """Those of the lower tier: it holds all entries, and only its evictions lose any."""
        return self._lower.stats()

    def tiers(self) -> Mapping[str, StoreStats]:
        """See `Store.tiers`."""
        return {**self._upper.tiers(), **self._lower.tiers()}

    async def close(self) -> None:
        """Finish pending writes, then close both tiers."""
        while tasks := {task for _, task in self._pending.values()} | self._refreshing:
            await asyncio.wait(tasks)
        await self._upper.close()
        await self._lower.close()

    def _write_behind(self, key: str, value: bytes | None) -> asyncio.Task[None]:
        """Start a put (or, without a value, a delete) in the lower tier, after earlier ones."""
        self._changes += 1
        earlier = self._pending.get(key)
        self._pending_bytes += len(value or b"")
        task = asyncio.ensure_future(self._write(key, value, earlier[1] if earlier else None))
        self._pending[key] = (value, task)
        return task

    async def _write(self, key: str, value: bytes | None, after: asyncio.Task[None] | None) -> None:
        try:
            if after is not None:
                await asyncio.wait({after})
            if value is None:
                await self._failures.result(self._lower, "delete", key, self._lower.delete(key))
            else:
                await self._failures.result(self._lower, "put", key, self._lower.put(key, value))
        finally:
            self._changes += 1
            self._pending_bytes -= len(value or b"")
            if self._pending[key][1] is asyncio.current_task():
                del self._pending[key]

    def _refresh(self, key: str) -> None:
        self._upper_hits += 1
        if self._upper_hits % REFRESH_EVERY == 0 and key not in self._pending:
            task = asyncio.ensure_future(self._touch_lower(key))
            self._refreshing.add(task)
            task.add_done_callback(self._refreshing.discard)

    async def _touch_lower(self, key: str) -> None:
        await self._failures.result(self._lower, "contains", key, self._lower.contains([key]))
