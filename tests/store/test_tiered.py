"""Two tiers: what is written behind the reply, and what happens when one fails."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping

import pytest

from lazyfx_server.store import MemoryStore, StoreError, StoreStats, TieredStore
from lazyfx_server.store.tiered_store import REFRESH_EVERY

LIMIT = 1 << 20


def key(name: object) -> str:
    return f"modules/{hashlib.sha256(str(name).encode()).hexdigest()}"


class SlowStore:
    """A durable tier that waits for a signal, or fails, and notes what it is asked."""

    name = "slow"

    def __init__(self) -> None:
        self.inner = MemoryStore(LIMIT)
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.asked: list[str] = []

    async def _enter(self, operation: str) -> None:
        self.asked.append(operation)
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    async def get(self, key: str) -> bytes | None:
        found = await self.inner.get(key)
        await self._enter("get")
        return found

    async def put(self, key: str, value: bytes) -> None:
        await self._enter("put")
        await self.inner.put(key, value)

    async def put_if_absent(self, key: str, value: bytes) -> bool:
        await self._enter("put_if_absent")
        return await self.inner.put_if_absent(key, value)

    async def contains(self, keys: Iterable[str]) -> set[str]:
        await self._enter("contains")
        return await self.inner.contains(keys)

    async def delete(self, key: str) -> None:
        await self._enter("delete")
        await self.inner.delete(key)

    def stats(self) -> StoreStats:
        return self.inner.stats()

    def tiers(self) -> Mapping[str, StoreStats]:
        return {self.name: self.stats()}

    async def close(self) -> None:
        self.asked.append("close")


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_put_returns_before_the_lower_tier_has_it() -> None:
    lower = SlowStore()
    lower.gate.clear()
    store = TieredStore(MemoryStore(LIMIT), lower)
    await store.put(key("a"), b"value")
    assert await store.get(key("a")) == b"value"
    assert lower.stats().entries == 0
    lower.gate.set()
    await store.close()
    assert lower.stats().entries == 1
    assert lower.asked == ["put", "close"]


async def test_a_reader_puts_no_old_value_over_a_put_that_left_the_lower_tier_out() -> None:
    lower, upper = SlowStore(), MemoryStore(LIMIT)
    await lower.inner.put(key("a"), b"old")
    store = TieredStore(upper, lower, max_pending_bytes=10, waits_when_full=False)
    lower.gate.clear()
    await store.put(key("b"), bytes(100))  # fills the queue
    reading = asyncio.ensure_future(store.get(key("a")))
    await settle()
    await store.put(key("a"), b"new")
    lower.gate.set()
    await reading
    assert await upper.get(key("a")) == b"new"
    await store.close()


async def test_entry_on_its_way_down_is_found_though_memory_has_no_room() -> None:
    lower = SlowStore()
    lower.gate.clear()
    store = TieredStore(MemoryStore(1000), lower)
    value = bytes(5000)
    await store.put(key("a"), value)
    assert await store.get(key("a")) == value
    assert key("a") in await asyncio.wait_for(_contains_while_blocked(store, lower), 5)
    lower.gate.set()
    await store.close()


async def _contains_while_blocked(store: TieredStore, lower: SlowStore) -> set[str]:
    asking = asyncio.ensure_future(store.contains([key("a")]))
    await settle()
    lower.gate.set()
    return await asking


async def test_read_fills_the_upper_tier() -> None:
    lower, upper = SlowStore(), MemoryStore(LIMIT)
    await lower.inner.put(key("a"), b"value")
    store = TieredStore(upper, lower)
    assert await store.get(key("a")) == b"value"
    assert await upper.get(key("a")) == b"value"
    assert await store.get(key("a")) == b"value"
    assert lower.asked == ["get"]


async def test_slow_read_does_not_bring_back_what_was_overwritten_or_deleted() -> None:
    lower, upper = SlowStore(), MemoryStore(LIMIT)
    await lower.inner.put(key("a"), b"old")
    await lower.inner.put(key("b"), b"old")
    store = TieredStore(upper, lower)
    lower.gate.clear()
    reads = [asyncio.ensure_future(store.get(key(name))) for name in "ab"]
    await settle()
    await store.put(key("a"), b"new")
    deleting = asyncio.ensure_future(store.delete(key("b")))
    await settle()
    lower.gate.set()
    await asyncio.gather(*reads, deleting)
    assert await store.get(key("a")) == b"new"
    assert await store.get(key("b")) is None


async def test_writes_of_one_key_keep_their_order() -> None:
    lower = SlowStore()
    store = TieredStore(MemoryStore(LIMIT), lower)
    lower.gate.clear()
    await store.put(key("a"), b"1")
    deleting = asyncio.ensure_future(store.delete(key("a")))
    await settle()
    assert await store.get(key("a")) is None
    await store.put(key("a"), b"2")
    lower.gate.set()
    await deleting
    await store.close()
    assert await lower.inner.get(key("a")) == b"2"


@pytest.mark.parametrize("error", [StoreError("disk on fire"), RuntimeError("a bug")])
async def test_failing_tier_is_a_counted_miss(error: Exception) -> None:
    lower = SlowStore()
    lower.error = error
    told: list[tuple[str, str, str, Exception]] = []
    store = TieredStore(
        MemoryStore(LIMIT), lower, on_error=lambda *everything: told.append(everything)
    )
    assert await store.get(key("a")) is None
    await store.put(key("a"), b"value")
    assert await store.get(key("a")) == b"value"
    assert await store.contains([key("a"), key("b")]) == {key("a")}
    await store.delete(key("a"))
    await store.close()
    assert sorted(operation for _, operation, _, _ in told) == ["contains", "delete", "get", "put"]
    assert {tier for tier, _, _, _ in told} == {"slow"}
    assert {name for _, _, name, _ in told} <= {key("a"), key("b")}
    assert all(e is error for _, _, _, e in told)


async def test_writers_wait_when_too_much_is_pending() -> None:
    lower = SlowStore()
    lower.gate.clear()
    store = TieredStore(MemoryStore(LIMIT), lower, max_pending_bytes=1000)
    await store.put(key("a"), bytes(900))
    second = asyncio.ensure_future(store.put(key("b"), bytes(900)))
    await settle()
    assert not second.done()
    lower.gate.set()
    await second
    await store.close()


async def test_writers_that_never_wait_leave_a_full_lower_tier_out() -> None:
    lower = SlowStore()
    lower.gate.clear()
    told: list[tuple[str, str]] = []
    store = TieredStore(
        MemoryStore(LIMIT),
        lower,
        on_error=lambda tier, operation, _key, _error: told.append((tier, operation)),
        max_pending_bytes=1000,
        waits_when_full=False,
    )
    for name in "abc":
        await store.put(key(name), bytes(900))
        assert await store.get(key(name)) == bytes(900)
    assert told == [("slow", "put")]
    lower.gate.set()
    await store.close()
    assert await lower.inner.contains([key(name) for name in "abc"]) == {key("a"), key("b")}


@pytest.mark.parametrize("away", [False, True])
async def test_lower_tier_decides_who_puts_first_unless_it_is_away(away: bool) -> None:
    lower, upper = SlowStore(), MemoryStore(LIMIT)
    await lower.inner.put(key("a"), b"of another server")
    if away:
        lower.error = StoreError("away")
    store = TieredStore(upper, lower)
    assert await store.put_if_absent(key("a"), b"own") == away
    assert await store.get(key("a")) == (b"own" if away else b"of another server")
    await store.close()


async def test_entries_hot_in_memory_stay_young_below() -> None:
    lower = SlowStore()
    store = TieredStore(MemoryStore(LIMIT), lower)
    await store.put(key("a"), b"value")
    await settle()
    lower.asked.clear()
    for _ in range(REFRESH_EVERY):
        await store.get(key("a"))
    await store.close()
    assert lower.asked == ["contains", "close"]


async def test_tiers_stack() -> None:
    lowest = SlowStore()
    middle = MemoryStore(LIMIT)
    store = TieredStore(MemoryStore(LIMIT), TieredStore(middle, lowest))
    await store.put(key("a"), b"value")
    await store.close()
    assert await lowest.inner.get(key("a")) == b"value"


async def test_large_entries_do_not_empty_the_memory() -> None:
    memory = MemoryStore(10_000, max_entry_bytes=2500)
    await memory.put(key("small"), b"small")
    await memory.put(key("large"), bytes(9000))
    assert await memory.get(key("small")) == b"small"
    assert await memory.get(key("large")) is None
