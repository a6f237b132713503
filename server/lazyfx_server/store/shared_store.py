"""One store of several servers: small entries here, large ones there.

Redis is fast for what is small and slow for what is large; a bucket is the other way round. An
entry is in one of the two by its size; the small one holds a note for each that is in the large
one, so that a miss costs no request to a bucket. Without the small one, the large one is asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from lazyfx_server.store.circuit_breaker import CircuitBreaker
from lazyfx_server.store.contract import (
    OnError,
    OnRecovered,
    SkippedError,
    Store,
    StoreStats,
    UnreachableError,
    checked_key,
)
from lazyfx_server.store.leases import Leases
from lazyfx_server.store.reported_failures import ReportedFailures

LARGE_BYTES: Final = 1 << 20
"""Entries that are longer are large."""

_HAS_WAITED: Final = SkippedError("the request has already waited for the store of small entries")


class SharedStore:
    """Two stores as one. Never raises StoreError, except from `put_if_absent` and `connect`.

    Args:
        small: Holds entries of up to LARGE_BYTES, and notes of larger ones.
        large: Holds the larger ones; None when `small` is to hold everything that it takes.
        remotes: The breakers in front of these two.
        leases: The leases of its servers; None if it cannot keep any.
        on_error: Told of each operation that failed.
        on_recovered: Told of each success of an operation that has failed at some time before.
    """

    def __init__(
        self,
        small: Store,
        large: Store | None,
        remotes: Sequence[CircuitBreaker],
        *,
        leases: Leases | None = None,
        on_error: OnError | None = None,
        on_recovered: OnRecovered | None = None,
    ) -> None:
        self._small = small
        self._large = large
        self._remotes = remotes
        self.leases = leases
        self._failures = ReportedFailures(on_error, on_recovered)

    @property
    def name(self) -> str:
        """The name of the small one, which decides."""
        return self._small.name

    def available(self) -> Mapping[str, bool]:
        """Whether each remote store is asked at present, by its name."""
        return {remote.name: remote.available for remote in self._remotes}

    async def connect(self) -> None:
        """Connects to the remote stores; those that do not answer are used when they do.

        Raises:
            StoreError: One must not be used by this server.
        """
        results = await asyncio.gather(
            *(remote.connect() for remote in self._remotes), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, UnreachableError):
                raise result

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        checked_key(key)
        began = time.monotonic()
        value = await self._failures.result(self._small, "get", key, self._small.get(key))
        if value is not None or self._large is None:
            return value
        if not await self._may_be_large(key):
            return None
        if self._has_waited(began):
            self._failures.report(self._large, "get", key, _HAS_WAITED)
            return None
        return await self._failures.result(self._large, "get", key, self._large.get(key))

    async def put(self, key: str, value: bytes) -> None:
        """See `Store.put`."""
        checked_key(key)
        if self._large is None or len(value) <= LARGE_BYTES:
            await self._failures.result(self._small, "put", key, self._put_small(key, value))
            return
        await self._failures.result(self._large, "put", key, self._large.put(key, value))
        # Also if that failed: then there is no large one, and the small one is out of date.
        await self._failures.result(self._small, "put", key, self._note_large(key))

    async def put_if_absent(self, key: str, value: bytes) -> bool:
        """See `Store.put_if_absent`. Decided for entries of one size, be it small or large.

        Raises:
            StoreError: It cannot be known.
        """
        checked_key(key)
        if self._large is None:
            return await self._small.put_if_absent(key, value)
        if await self.contains([key]):
            return False
        if len(value) <= LARGE_BYTES:
            return await self._small.put_if_absent(key, value)
        stored = await self._large.put_if_absent(key, value)
        await self._small.put(_note(key), b"")
        return stored

    async def contains(self, keys: Iterable[str]) -> set[str]:
        """See `Store.contains`."""
        notes = {key: _note(key) for key in keys if checked_key(key)}
        if not notes:
            return set()
        some, began = next(iter(notes)), time.monotonic()
        asked = [*notes] if self._large is None else [*notes, *notes.values()]
        small = await self._failures.result(
            self._small, "contains", some, self._small.contains(asked)
        )
        found = notes.keys() & (small or set())
        if self._large is None:
            return found
        perhaps = [
            key
            for key, note in notes.items()
            if key not in found and (small is None or note in small)
        ]
        if perhaps and self._has_waited(began):
            self._failures.report(self._large, "contains", some, _HAS_WAITED)
        elif perhaps:
            large = await self._failures.result(
                self._large, "contains", some, self._large.contains(perhaps)
            )
            found |= large or set()
        return found

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        checked_key(key)
        for store, name in ((self._small, key), (self._small, _note(key)), (self._large, key)):
            if store is not None:
                await self._failures.result(store, "delete", key, store.delete(name))

    def stats(self) -> StoreStats:
        """Those of the small one."""
        return self._small.stats()

    def tiers(self) -> Mapping[str, StoreStats]:
        """See `Store.tiers`."""
        return {**self._small.tiers(), **(self._large.tiers() if self._large is not None else {})}

    async def close(self) -> None:
        """Closes both."""
        await self._small.close()
        if self._large is not None:
            await self._large.close()

    def _has_waited(self, began: float) -> bool:
        """Whether a remote `small` has just used up the time that a request waits for both."""
        if len(self._remotes) < 2 or self._remotes[0].available:
            return False
        return time.monotonic() - began >= self._remotes[0].wait_seconds

    async def _put_small(self, key: str, value: bytes) -> None:
        await self._small.put(key, value)
        if self._large is not None:
            await self._small.delete(_note(key))

    async def _note_large(self, key: str) -> None:
        await self._small.put(_note(key), b"")
        await self._small.delete(key)

    async def _may_be_large(self, key: str) -> bool:
        note = _note(key)
        noted = await self._failures.result(
            self._small, "contains", key, self._small.contains([note])
        )
        return noted is None or note in noted


def _note(key: str) -> str:
    return f"large/{hashlib.sha256(key.encode()).hexdigest()}"
