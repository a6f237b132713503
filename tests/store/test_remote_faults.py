"""Stores on other machines that are away, frozen, slow or full."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any, cast

import pytest
import redis
import store_servers
from remote_stores import (
    LARGE,
    client,
    forwarding,
    identity,
    key,
    opened,
    until,
    url,
)

from lazyfx_server.store import (
    SkippedError,
    StoreError,
    UnreachableError,
    circuit_breaker,
    open_store,
)
from lazyfx_server.store.circuit_breaker import CircuitBreaker
from lazyfx_server.store.contract import MissingStoreError
from lazyfx_server.store.opening_shared import open_remote

if TYPE_CHECKING:
    from lazyfx_server.store.contract import RemoteStore

pytestmark = pytest.mark.usefixtures("store_servers_end")


@pytest.fixture(params=["redis", "moto"])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server that the test may kill, and the URL of the store in it."""
    server = store_servers.redis() if request.param == "redis" else store_servers.moto()
    if request.param == "redis":
        yield server, url(server), "redis"
    else:
        for name, value in store_servers.s3_variables(server).items():
            monkeypatch.setenv(name, value)
        yield server, "s3://shared/failing", "s3"
    server.kill()


async def test_frozen_store_is_given_up_and_found_again(failing: Any) -> None:
    server, where, tier = failing
    async with opened(where, wait=0.5) as one:
        await until(lambda: one.store.available()[tier])
        await one.store.put(key("a"), b"value")
        assert await one.store.get(key("a")) == b"value"
        server.signal(signal.SIGSTOP)
        asked = [one.store.get(key(name)) for name in "abc"]
        assert await asyncio.wait_for(asyncio.gather(*asked), 30) == [None] * 3
        assert one.store.available() == {tier: False}
        assert one.told.changes[-1] == (tier, False)
        assert UnreachableError in one.told.kinds()
        # From here on it is not asked at all.
        before = len(one.told.errors)
        for _ in range(1000):
            assert await one.store.get(key("a")) is None
            await one.store.put(key("b"), b"value")
            assert await one.store.contains([key("a")]) == set()
        await one.store.delete(key("c"))
        assert {type(error) for _, _, error in one.told.errors[before:]} <= {SkippedError}
        server.signal(signal.SIGCONT)
        await until(lambda: one.store.available()[tier])
        assert await one.store.get(key("a")) == b"value"


async def test_killed_store_is_a_miss_until_it_is_back(failing: Any) -> None:
    server, where, tier = failing
    async with opened(where) as one:
        await one.store.put(key("a"), b"value")
        server.kill()
        assert await asyncio.wait_for(one.store.get(key("a")), 30) is None
        await one.store.put(key("b"), b"value")
        assert await one.store.contains([key("a")]) == set()
        assert one.store.available() == {tier: False}
        server.start()
        await until(lambda: one.store.available()[tier])
        assert await one.store.get(key("a")) is None  # it kept nothing
        await one.store.put(key("a"), b"again")
        assert await one.store.get(key("a")) == b"again"


async def test_server_starts_while_its_store_is_away() -> None:
    nobody = f"redis://user:hidden@127.0.0.1:{store_servers.free_port()}/0"
    async with opened(nobody) as one:
        assert await one.store.get(key("a")) is None
        with pytest.raises(SkippedError) as caught:
            await one.store.put_if_absent(key("a"), b"value")
        assert "hidden" not in str(caught.value)
        store = open_store(None, memory_bytes=1 << 20, disk_bytes=0, shared=one.store)
        assert await store.put_if_absent(key("a"), b"value")
        assert not await store.put_if_absent(key("a"), b"value")
        assert await store.get(key("a")) == b"value"
        assert not any("hidden" in str(error) for _, _, error in one.told.errors)


async def test_large_entries_are_found_without_redis(
    server: store_servers.Server, bucket: str
) -> None:
    async with opened(url(server), bucket) as one:
        await one.store.put(key("large"), LARGE)
        server.kill()
        assert await one.store.get(key("large")) == LARGE
        assert await one.store.contains([key("large"), key("small")]) == {key("large")}


async def test_request_waits_once_for_two_frozen_stores(
    server: store_servers.Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    s3 = store_servers.moto()
    request.addfinalizer(s3.kill)
    for name, value in store_servers.s3_variables(s3).items():
        monkeypatch.setenv(name, value)
    async with opened(url(server), "s3://shared/frozen", wait=1.0) as one:
        for ask, nothing in (
            (lambda: one.store.get(key("a")), None),
            (lambda: one.store.contains([key("a")]), set()),
        ):
            await until(lambda: all(one.store.available().values()))
            for each in (server, s3):
                each.signal(signal.SIGSTOP)
            one.told.errors.clear()
            assert await ask() == nothing
            kinds = [(tier, type(error)) for tier, _, error in one.told.errors]
            assert kinds[0] == ("redis", UnreachableError)
            assert kinds[-1] == ("s3", SkippedError)
            assert ("s3", UnreachableError) not in kinds
            for each in (server, s3):
                each.signal(signal.SIGCONT)


async def test_slow_store_is_left_alone_until_it_is_fast(server: store_servers.Server) -> None:
    async with (
        forwarding(server.port) as way,
        opened(f"redis://127.0.0.1:{way.port}/0", wait=0.25) as one,
    ):
        await until(lambda: one.store.available()["redis"])
        await one.store.put(key("a"), b"value")
        way.delay = 0.4
        assert await one.store.get(key("a")) is None
        await asyncio.sleep(2)  # probes are answered, too late
        assert one.store.available() == {"redis": False}
        way.delay = 0.0
        await until(lambda: one.store.available()["redis"])
        assert await one.store.get(key("a")) == b"value"


async def test_read_only_redis_is_read(server: store_servers.Server) -> None:
    async with opened(url(server)) as one:
        await one.store.put(key("a"), b"value")
        client(server).replicaof("127.0.0.1", str(store_servers.free_port()))
        assert await one.store.get(key("a")) == b"value"
        await one.store.put(key("b"), b"value")
        assert [(tier, operation) for tier, operation, _ in one.told.errors] == [("redis", "put")]
        assert one.store.available() == {"redis": True}
    async with opened(url(server)) as late:  # it finds the mark, and can leave none
        assert await late.store.get(key("a")) == b"value"


async def test_full_redis_is_read(request: pytest.FixtureRequest) -> None:
    full = store_servers.redis("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    request.addfinalizer(full.kill)
    async with opened(url(full)) as one:
        await one.store.put(key("a"), b"value")
        for number in range(60):
            await one.store.put(key(number), bytes(100_000))
        assert one.told.kinds() == {StoreError}
        assert one.store.available() == {"redis": True}
        assert await one.store.get(key("a")) == b"value"


class CountedStore:
    """A bucket that takes a while for each of its keys, at most 32 at a time."""

    name = "counted"

    def __init__(self) -> None:
        self.room = asyncio.Semaphore(32)
        self.fails: Exception | None = None

    async def contains(self, keys: Any) -> set[str]:
        async def there(name: str) -> str:
            async with self.room:
                await asyncio.sleep(0.02)
            return name

        return set(await asyncio.gather(*map(there, keys)))

    async def put(self, _key: str, _value: bytes) -> None:
        async with self.room:
            await asyncio.sleep(0.02)

    async def refresh(self) -> None:
        if self.fails is not None:
            raise self.fails

    async def close(self) -> None:
        pass


async def test_many_keys_have_more_time_than_one() -> None:
    breaker = CircuitBreaker(cast("RemoteStore", CountedStore()))
    await breaker.connect()
    wanted = {key(number) for number in range(200)}
    assert await breaker.contains(wanted) == wanted
    assert breaker.available
    await breaker.close()


async def test_a_crowd_of_writes_may_take_as_long_as_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(circuit_breaker, "_WRITE_SECONDS", 0.01)
    breaker = CircuitBreaker(cast("RemoteStore", CountedStore()), wait_seconds=30.0)
    await breaker.connect()
    # More than may be under way, several times over.
    await asyncio.gather(*(breaker.put(key(n), b"value") for n in range(200)))
    await breaker.close()


async def test_probing_survives_any_error() -> None:
    inner = CountedStore()
    inner.fails = RuntimeError("of a library")
    breaker = CircuitBreaker(cast("RemoteStore", inner))
    with pytest.raises(StoreError, match="of a library"):
        await breaker.connect()
    inner.fails = None
    await until(lambda: breaker.available)
    await breaker.close()


async def test_a_missing_bucket_is_named_and_not_used(bucket: str) -> None:
    absent = bucket.replace("shared", "absent")
    store = open_remote(absent, 600)
    with pytest.raises(MissingStoreError, match="there is no bucket 'absent'"):
        await store.put(key("a"), b"value")
    with pytest.raises(MissingStoreError, match="there is no bucket 'absent'"):
        await store.put_if_absent(key("a"), b"value")
    with pytest.raises(MissingStoreError, match="there is no bucket 'absent'"):
        await identity().check(store)
    await store.close()


async def test_missing_credentials_are_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # No machine of a test has a role.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://169.254.0.1:1")
    store = open_remote(bucket, 600)
    with pytest.raises(StoreError, match="no credentials; set AWS_ACCESS_KEY_ID") as caught:
        await store.get(key("a"))
    assert "Debug" not in str(caught.value)
    await store.close()


@pytest.mark.parametrize("password", ["", ":wrong@"])
async def test_a_wrong_password_is_no_outage(server: store_servers.Server, password: str) -> None:
    with redis.Redis(port=server.port) as admin:
        admin.config_set("requirepass", "right")
    store = open_remote(f"redis://{password}127.0.0.1:{server.port}/0", 600)
    with pytest.raises(StoreError, match="is missing or wrong; set it in the URL") as caught:
        await store.get(key("a"))
    assert not isinstance(caught.value, UnreachableError)
    await store.close()


async def test_a_server_without_tls_is_suspected(server: store_servers.Server) -> None:
    async with opened(f"rediss://127.0.0.1:{server.port}/0") as one:
        assert await one.store.get(key("a")) is None
        assert "needs a server that speaks TLS" in str(one.told.errors[0][2])
