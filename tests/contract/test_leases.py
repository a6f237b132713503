"""The contract of leases, over the stores that keep them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis
import store_servers

from lazyfx_server.store import Leases, StoreError
from lazyfx_server.store.circuit_breaker import CircuitBreaker
from lazyfx_server.store.leases import MAX_NOTE_BYTES
from lazyfx_server.store.redis_store import RedisStore

SECRET = b"what the servers have in common"
KEY = f"modules/{hashlib.sha256(b'a').hexdigest()}"
OTHER = f"artifacts/{hashlib.sha256(b'a').hexdigest()}"
Servers = Any


@pytest.fixture(params=["redis", "valkey"])
def kept_by(request: pytest.FixtureRequest) -> store_servers.Server:
    server = store_servers.running(request.param)
    redis.Redis(port=server.port).flushall()
    return server


@pytest.fixture
async def server(kept_by: store_servers.Server) -> AsyncIterator[Servers]:
    """Makes the leases of one more server."""
    async with AsyncExitStack() as opened:

        async def start(seconds: float = 30.0, secret: bytes = SECRET) -> Leases:
            url = f"redis://127.0.0.1:{kept_by.port}/0"
            store = RedisStore(url, ttl_seconds=600, max_entry_bytes=1 << 20)
            breaker = CircuitBreaker(store, wait_seconds=10.0)
            await breaker.connect()
            opened.push_async_callback(breaker.close)
            return Leases(store, breaker, secret, seconds)

        yield start


def raw(server: store_servers.Server) -> Any:
    return redis.Redis(port=server.port)


async def test_one_of_many_takes_a_lease(server: Servers) -> None:
    servers = [await server() for _ in range(4)]
    taken = await asyncio.gather(*(servers[n % 4].take(KEY) for n in range(64)))
    assert sum(lease is not None for lease in taken) == 1
    assert await servers[0].take(OTHER) is not None


async def test_lease_is_over_when_it_is_released(server: Servers) -> None:
    one, two = await server(), await server()
    lease = await one.take(KEY)
    assert await two.holder(KEY) == b""
    await one.release(lease)
    await one.release(lease)
    assert await two.holder(KEY) is None
    assert await two.take(KEY) is not None


async def test_lease_ends_by_itself_unless_it_is_renewed(server: Servers) -> None:
    one, two = await server(1.0), await server()
    lease = await one.take(KEY)
    for _ in range(7):
        await asyncio.sleep(0.2)
        assert await one.renew(lease, b"")
        assert await two.take(KEY) is None
    await asyncio.sleep(1.1)
    assert await two.holder(KEY) is None
    assert await two.take(KEY) is not None


async def test_holder_that_was_away_does_not_take_it_back(server: Servers) -> None:
    one, two = await server(0.5), await server()
    old = await one.take(KEY)
    await asyncio.sleep(0.6)
    new = await two.take(KEY)
    assert new is not None
    assert not await one.renew(old, b"mine")
    await one.release(old)
    assert await one.holder(KEY) == b""
    assert await two.renew(new, b"")


async def test_lease_that_nobody_has_taken_since_is_renewed(server: Servers) -> None:
    one = await server(0.5)
    lease = await one.take(KEY)
    await asyncio.sleep(0.6)
    assert await one.renew(lease, b"again")
    assert await one.holder(KEY) == b"again"


async def test_holder_tells_how_far_it_is(server: Servers) -> None:
    one, two = await server(), await server()
    lease = await one.take(KEY)
    for note in (b"tracing", b"", bytes(MAX_NOTE_BYTES)):
        await one.renew(lease, note)
        assert await two.holder(KEY) == note


@pytest.mark.parametrize("seconds", [None, 3600])
async def test_stranger_cannot_hold_a_lease(
    server: Servers, kept_by: store_servers.Server, seconds: int | None
) -> None:
    one = await server()
    name = f"lazyfx:1:lease:{KEY}"
    for forged in (b"x", bytes(32), bytes(5000)):
        raw(kept_by).set(name, forged, ex=seconds)
        with pytest.raises(StoreError, match="secret"):
            await one.holder(KEY)
    # A copy of one that servers have made ends by itself as well.
    other = await server()
    raw(kept_by).delete(name)
    await other.take(KEY)
    raw(kept_by).set(name, raw(kept_by).get(name), ex=seconds)
    with pytest.raises(StoreError, match="does not expire"):
        await one.holder(KEY)
    stranger = await server(secret=b"another")
    raw(kept_by).delete(name)
    await stranger.take(KEY)
    with pytest.raises(StoreError, match="secret"):
        await one.holder(KEY)


async def test_store_that_is_away_raises_and_does_not_wait() -> None:
    away = store_servers.redis()
    store = RedisStore(f"redis://127.0.0.1:{away.port}/0", ttl_seconds=600, max_entry_bytes=1 << 20)
    breaker = CircuitBreaker(store, wait_seconds=5.0)
    await breaker.connect()
    leases = Leases(store, breaker, SECRET, 30.0)
    lease = await leases.take(KEY)
    assert lease is not None
    away.kill()
    for question in (
        leases.take(KEY), leases.renew(lease, b""), leases.holder(KEY), leases.release(lease)
    ):  # fmt: skip
        with pytest.raises(StoreError):
            await question
    await breaker.close()
