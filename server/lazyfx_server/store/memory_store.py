"""The fastest tier: values in this process's memory, least recently used evicted first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cachetools import LRUCache

from lazyfx_server.store.contract import (
    StoreStats,
    TierName,
    checked_key,
)

ENTRY_OVERHEAD: Final = 256
"""Overhead of an entry in bytes: the key, the bytes object, the table slot."""


class MemoryStore:
    """Stores values in memory. Its methods never wait and never raise StoreError.

    Args:
        limit_bytes: The bound, including overhead.
        max_entry_bytes: Larger values are not kept, so that one value cannot evict everything else;
            `limit_bytes` by default.
    """

    def __init__(self, limit_bytes: int, *, max_entry_bytes: int | None = None) -> None:
        self._entries = _CountingLRU(limit_bytes)
        self._max_entry_bytes = limit_bytes if max_entry_bytes is None else max_entry_bytes

    @property
    def name(self) -> TierName:
        """The tier's name."""
        return "memory"

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        checked_key(key)
        return self._entries.get(key)

    async def put(self, key: str, value: bytes) -> None:
        """See `Store.put`."""
        checked_key(key)
        size = len(value) + ENTRY_OVERHEAD
        if size > min(self._max_entry_bytes, self._entries.maxsize):
            self._entries.pop(key, None)
        else:
            self._entries[key] = value

    async def put_if_absent(self, key: str, value: bytes) -> bool:
        """See `Store.put_if_absent`."""
        checked_key(key)
        if self._entries.get(key) is not None:
            return False
        await self.put(key, value)  # does not wait
        return key in self._entries

    async def contains(self, keys: Iterable[str]) -> set[str]:
        """See `Store.contains`."""
        found = set()
        for key in keys:
            checked_key(key)
            if self._entries.get(key) is not None:
                found.add(key)
        return found

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        checked_key(key)
        self._entries.pop(key, None)

    def trim(self) -> None:
        """Drop the less recently used half of the bytes."""
        target = self._entries.currsize // 2
        while self._entries.currsize > target:
            self._entries.popitem()

    def stats(self) -> StoreStats:
        """See `Store.stats`."""
        entries = self._entries
        return StoreStats(
            entries=len(entries),
            bytes=int(entries.currsize),
            limit_bytes=int(entries.maxsize),
            evictions=entries.evictions,
        )

    def tiers(self) -> Mapping[str, StoreStats]:
        """See `Store.tiers`."""
        return {self.name: self.stats()}

    async def close(self) -> None:
        """Drop everything."""
        self._entries.clear()


class _CountingLRU(LRUCache[str, bytes]):
    """An LRU cache that counts evictions; cachetools evicts through `popitem`."""

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize, getsizeof=_size)
        self.evictions = 0

    def popitem(self) -> tuple[str, bytes]:
        self.evictions += 1
        return super().popitem()

    def clear(self) -> None:
        evictions = self.evictions
        super().clear()  # through popitem
        self.evictions = evictions


def _size(value: bytes) -> int:
    return len(value) + ENTRY_OVERHEAD
