"""The contract of leases, over the stores that keep them."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import redis
import store_servers
from remote_stores import forwarding

from lazyfx_server.store import Lease, Leases, StoreError
from lazyfx_server.store.buckets.s3_store import S3Store
from lazyfx_server.store.circuit_breaker import CircuitBreaker
from lazyfx_server.store.contract import LeasingStore, RemoteStore
from lazyfx_server.store.leases import MAX_NOTE_BYTES
from lazyfx_server.store.redis_store import RedisStore

SECRET = b"what the servers have in common"
KEY = f"modules/{hashlib.sha256(b'a').hexdigest()}"
OTHER = f"artifacts/{hashlib.sha256(b'a').hexdigest()}"
Servers = Any


@dataclass(frozen=True)
class Kept:
    """Where leases are kept.

    Attributes:
        open: Opens one more store there; a bucket, if wanted, through another port.
        write: Writes the bytes of the lease of KEY, as whoever can write to the store.
        prefix: What bytes of a lease begin with there.
    """

    open: Callable[..., RemoteStore]
    write: Callable[[bytes], None]
    prefix: bytes = b""


def kept_in_redis(kind: str) -> Kept:
    port = store_servers.running(kind).port
    url = f"redis://127.0.0.1:{port}/0"
    client = redis.Redis(port=port)
    client.flushall()
    name = f"lazyfx:1:lease:{KEY}"
    return Kept(
        lambda: RedisStore(url, ttl_seconds=600, max_entry_bytes=1 << 20),
        lambda data: client.set(name, data, ex=30),
    )


def kept_in_s3(kind: str) -> Kept:
    part = uuid.uuid4().hex
    name = f"lazyfx-1/leases/{KEY.replace('/', '-')}"

    def open_it(port: int | None = None) -> RemoteStore:
        with (
            store_servers.s3_environment(store_servers.running(kind)),
            pytest.MonkeyPatch.context() as patch,
        ):
            if port is not None:
                patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            return S3Store(f"s3://shared/{part}", max_entry_bytes=1 << 20)

    def write(data: bytes) -> None:
        store_servers.s3_client(store_servers.running(kind).port).put_object(
            Bucket="shared", Key=f"{part}/{name}", Body=data
        )

    return Kept(open_it, write, (30_000).to_bytes(4, "big") + bytes(8))


# moto checks a condition in one step and writes in another, in threads: several may win.
RACES = pytest.mark.parametrize("kept", ["redis", "valkey", "seaweed"], indirect=True)


@pytest.fixture(params=["redis", "valkey", "moto"])
def kept(request: pytest.FixtureRequest) -> Kept:
    make = kept_in_redis if request.param in ("redis", "valkey") else kept_in_s3
    return make(request.param)


@pytest.fixture
async def server(kept: Kept) -> AsyncIterator[Servers]:
    """Makes the leases of one more server."""
    async with AsyncExitStack() as opened:

        async def start(seconds: float = 30.0, secret: bytes = SECRET) -> Leases:
            store = kept.open()
            assert isinstance(store, LeasingStore)
            breaker = CircuitBreaker(store, wait_seconds=30.0)
            await breaker.connect()
            opened.push_async_callback(breaker.close)
            return Leases(store, breaker, secret, seconds)

        yield start


async def taken(leases: Leases) -> Lease:
    """The lease, when the one that another server holds has ended.

    In a bucket, a server knows that one has ended when it has not changed while it looked.
    """
    for _ in range(600):
        if (lease := await leases.take(KEY)) is not None:
            return lease
        await asyncio.sleep(0.05)
    raise AssertionError("it never ended")


@RACES
async def test_one_of_many_takes_a_lease(server: Servers) -> None:
    servers = [await server() for _ in range(4)]
    taken = await asyncio.gather(*(servers[n % 4].take(KEY) for n in range(32)))
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
    new = await taken(two)
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


@RACES
async def test_one_of_many_takes_over(server: Servers) -> None:
    holder, *others = [await server(0.5) for _ in range(5)]
    await holder.take(KEY)
    for _ in range(200):
        won = await asyncio.gather(*(other.take(KEY) for other in others))
        if any(won):
            break
        await asyncio.sleep(0.01)
    assert sum(lease is not None for lease in won) == 1


async def test_stranger_cannot_hold_a_lease(server: Servers, kept: Kept) -> None:
    one = await server()
    for forged in (b"x", bytes(32), bytes(4000)):
        kept.write(kept.prefix + forged)
        with pytest.raises(StoreError, match="secret"):
            await one.holder(KEY)
    stranger = await server(secret=b"another")
    kept.write(kept.prefix)
    await stranger.renew(Lease(KEY, b""), b"")
    with pytest.raises(StoreError, match="secret"):
        await one.holder(KEY)


@pytest.mark.parametrize("seconds", [None, 3600])
async def test_copy_of_a_lease_ends_by_itself(seconds: int | None) -> None:
    port = store_servers.running("redis").port
    client: Any = redis.Redis(port=port)
    client.flushall()
    store = RedisStore(f"redis://127.0.0.1:{port}/0", ttl_seconds=600, max_entry_bytes=1 << 20)
    breaker = CircuitBreaker(store, wait_seconds=10.0)
    await breaker.connect()
    leases, name = Leases(store, breaker, SECRET, 30.0), f"lazyfx:1:lease:{KEY}"
    await leases.take(KEY)
    client.set(name, client.get(name), ex=seconds)
    with pytest.raises(StoreError, match="does not expire"):
        await leases.holder(KEY)
    await breaker.close()


async def test_bytes_in_a_bucket_that_are_no_lease_hold_nothing() -> None:
    kept = kept_in_s3("moto")
    store = kept.open()
    breaker = CircuitBreaker(store, wait_seconds=10.0)
    await breaker.connect()
    assert isinstance(store, LeasingStore)
    leases = Leases(store, breaker, SECRET, 30.0)
    for strange in (b"", b"x", bytes(12), bytes(1 << 16)):
        kept.write(strange)
        assert await leases.holder(KEY) is None
    kept.write(b"\xff" * 100)
    with pytest.raises(StoreError, match="secret"):
        await leases.holder(KEY)
    kept.write(b"x")
    assert await leases.take(KEY) is not None
    await breaker.close()


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


async def test_slow_bucket_has_the_time_for_each_request() -> None:
    """A lease that another server holds takes two requests, and each may take `wait_seconds`."""
    kept, server = kept_in_s3("moto"), store_servers.running("moto")
    async with AsyncExitStack() as opened:
        way = await opened.enter_async_context(forwarding(server.port))
        near, far = kept.open(), kept.open(way.port)
        leases = []
        for store in (near, far):
            breaker = CircuitBreaker(store, wait_seconds=2.0)
            await breaker.connect()
            opened.push_async_callback(breaker.close)
            assert isinstance(store, LeasingStore)
            leases.append(Leases(store, breaker, SECRET, 30.0))
        assert await leases[0].take(KEY) is not None
        way.delay = 0.6
        assert await leases[1].take(KEY) is None
        assert breaker.available
