"""Stores on other machines: what they leave behind, and what happens when they fail."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import redis
import store_servers

from lazyfx_server.store import (
    OtherIdentityError,
    SharedIdentity,
    SharedStore,
    SharedStoreError,
    SharedStoreSettings,
    SkippedError,
    StoreError,
    StoreHooks,
    UnreachableError,
    open_shared_store,
    open_store,
)
from lazyfx_server.store.circuit_breaker import CircuitBreaker
from lazyfx_server.store.contract import MissingStoreError
from lazyfx_server.store.opening_shared import open_remote, shown
from lazyfx_server.store.shared_store import LARGE_BYTES
from lazyfx_server.store.verified_store import seal

if TYPE_CHECKING:
    from lazyfx_server.store.contract import RemoteStore

SECRET = b"a secret of thirty-two bytes ..."
LARGE = bytes(LARGE_BYTES + 1)


def key(name: object) -> str:
    return f"modules/{hashlib.sha256(str(name).encode()).hexdigest()}"


def identity(secret: bytes = SECRET, keys: tuple[bytes, ...] = (b"key",)) -> SharedIdentity:
    return SharedIdentity(secret, lambda: keys, "copy the secret", "copy the key")


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    for _ in range(int(seconds * 50)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never became true")


@dataclass
class Told:
    """What a store has reported."""

    errors: list[tuple[str, str, Exception]] = field(default_factory=list)
    corrupt: list[tuple[str, str]] = field(default_factory=list)
    changes: list[tuple[str, bool]] = field(default_factory=list)

    def kinds(self) -> set[type[Exception]]:
        return {type(error) for _, _, error in self.errors}


@dataclass
class Opened:
    store: SharedStore
    told: Told


@contextlib.asynccontextmanager
async def opened(
    store: str,
    blobs: str | None = None,
    *,
    folder: Path | None = None,
    wait: float = 5.0,
    own: SharedIdentity | None = None,
    connect: bool = True,
) -> AsyncIterator[Opened]:
    told = Told()
    settings = SharedStoreSettings(
        store=store,
        blobs=blobs,
        folder=folder,
        folder_bytes=1 << 26,
        wait_seconds=wait,
        ttl_seconds=600,
    )
    shared = open_shared_store(
        settings,
        own or identity(),
        StoreHooks(
            on_error=lambda tier, operation, _key, error: told.errors.append(
                (tier, operation, error)
            ),
            on_corrupt=lambda tier, name: told.corrupt.append((tier, name)),
            on_change=lambda tier, problem: told.changes.append((tier, problem is None)),
        ),
    )
    if connect:
        await shared.connect()
    try:
        yield Opened(shared, told)
    finally:
        await shared.close()


@pytest.fixture
def server() -> Iterator[store_servers.Server]:
    """A Redis of the test's own, which it may kill."""
    started = store_servers.redis()
    yield started
    started.kill()


@pytest.fixture
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty part of a bucket; the environment tells where it is."""
    for name, value in store_servers.s3_variables(store_servers.running("moto")).items():
        monkeypatch.setenv(name, value)
    return f"s3://shared/{key(request.node.name)[-12:]}"


@pytest.fixture(scope="module", autouse=True)
def _end_servers() -> Any:
    yield
    store_servers.stop_all()


def url(server: store_servers.Server) -> str:
    return f"redis://127.0.0.1:{server.port}/0"


def client(server: store_servers.Server) -> Any:
    return redis.Redis(port=server.port)


def stored(server: store_servers.Server, name: str) -> str:
    return f"lazyfx:1:{key(name)}"


# What is in there


async def test_large_entries_are_in_the_bucket_and_small_ones_are_not(
    server: store_servers.Server, bucket: str
) -> None:
    async with opened(url(server), bucket) as one, opened(url(server), bucket) as other:
        await one.store.put(key("small"), b"small")
        await one.store.put(key("large"), LARGE)
        assert await other.store.get(key("small")) == b"small"
        assert await other.store.get(key("large")) == LARGE
        assert await other.store.contains([key("large"), key("no")]) == {key("large")}
        bucket_only = open_remote(bucket, 600)
        assert await bucket_only.contains([key("small"), key("large")]) == {key("large")}
        assert client(server).memory_usage(stored(server, "large")) is None
        # One that a lifecycle rule has removed is not there, whatever was noted.
        await bucket_only.delete(key("large"))
        assert await other.store.get(key("large")) is None
        assert await other.store.contains([key("large")]) == set()
        assert not one.told.errors
        assert not other.told.errors


async def test_entry_that_changes_its_size_has_one_value(
    server: store_servers.Server, bucket: str
) -> None:
    async with opened(url(server), bucket) as one:
        for value in (b"small", LARGE, b"small again", LARGE + b"!"):
            await one.store.put(key("a"), value)
            assert await one.store.get(key("a")) == value
        assert not await one.store.put_if_absent(key("a"), b"small")
        await one.store.delete(key("a"))
        assert await one.store.get(key("a")) is None
        assert await one.store.put_if_absent(key("a"), LARGE)
        assert not await one.store.put_if_absent(key("a"), LARGE + b"?")
        assert await one.store.get(key("a")) == LARGE


async def test_without_a_bucket_large_entries_stay_in_the_folder(
    server: store_servers.Server, tmp_path: Path
) -> None:
    async with (
        opened(url(server), folder=tmp_path / "1") as one,
        opened(url(server), folder=tmp_path / "2") as other,
    ):
        await one.store.put(key("large"), LARGE)
        assert await one.store.get(key("large")) == LARGE
        assert await other.store.get(key("large")) is None
        assert await other.store.contains([key("large")]) == set()


async def test_uses_renew_the_time_to_live(server: store_servers.Server) -> None:
    async with opened(url(server)) as one:
        await one.store.put(key("a"), b"value")
        ask = client(server)
        for use in (one.store.get(key("a")), one.store.contains([key("a")])):
            ask.expire(stored(server, "a"), 100)
            await use
            assert ask.ttl(stored(server, "a")) > 500
        ask.pexpire(stored(server, "a"), 1)
        await asyncio.sleep(0.05)
        assert await one.store.get(key("a")) is None


async def test_another_version_finds_nothing(
    server: store_servers.Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lazyfx_server.store import redis_store, s3_store

    async with opened(url(server), bucket) as old:
        await old.store.put(key("small"), b"small")
        await old.store.put(key("large"), LARGE)
        for module in (redis_store, s3_store):
            monkeypatch.setattr(module, "STORE_VERSION", 2)
        async with opened(url(server), bucket) as new:
            assert await new.store.get(key("small")) is None
            assert await new.store.get(key("large")) is None
            await new.store.put(key("small"), b"new")
        assert await old.store.get(key("small")) == b"small"


async def test_redis_keeps_its_own_bound(request: pytest.FixtureRequest) -> None:
    bounded = store_servers.redis("--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru")
    request.addfinalizer(bounded.kill)
    async with opened(url(bounded)) as one:
        for number in range(100):
            await one.store.put(key(number), bytes(100_000))
        assert await one.store.get(key(99)) == bytes(100_000)
        assert await one.store.get(key(0)) is None
        assert not one.told.errors
        remote = open_remote(url(bounded), 600)
        await remote.refresh()
        assert remote.stats().limit_bytes == 4 << 20
        assert remote.stats().evictions > 0
        await remote.close()


def _certificate(folder: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


async def test_tls(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    _certificate(tmp_path)
    port = store_servers.free_port()
    server = store_servers.redis(
        "--tls-port", str(port), "--tls-cert-file", str(tmp_path / "cert.pem"),
        "--tls-key-file", str(tmp_path / "key.pem"), "--tls-auth-clients", "no",
    )  # fmt: skip
    request.addfinalizer(server.kill)
    trusted = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / 'cert.pem'}"
    async with opened(trusted) as one:
        await one.store.put(key("a"), b"value")
        assert await one.store.get(key("a")) == b"value"
    async with opened(f"rediss://127.0.0.1:{port}/0") as untrusted:
        assert untrusted.store.available() == {"redis": False}


# Damage and forgery


async def test_damaged_entries_are_quarantined_and_made_again(
    server: store_servers.Server, bucket: str
) -> None:
    async with opened(url(server), bucket) as one:
        await one.store.put(key("small"), b"value")
        await one.store.put(key("large"), LARGE)
        ask = client(server)
        ask.setrange(stored(server, "small"), 50, b"\xff")
        remote = open_remote(bucket, 600)
        sealed = bytearray(await remote.get(key("large")) or b"")
        sealed[1000] ^= 1
        await remote.put(key("large"), bytes(sealed))
        assert await one.store.get(key("small")) is None
        assert await one.store.get(key("large")) is None
        assert one.told.corrupt == [("redis", key("small")), ("s3", key("large"))]
        assert ask.exists(f"lazyfx:1:quarantine:{key('small')}")
        assert 0 < ask.ttl(f"lazyfx:1:quarantine:{key('small')}") <= 86_400
        assert await remote.get(key("large")) is None
        for name, value in (("small", b"value"), ("large", LARGE)):
            await one.store.put(key(name), value)
            assert await one.store.get(key(name)) == value


@pytest.mark.parametrize(
    "forged",
    [
        seal(key("a"), b"forged"),
        seal(key("a"), b"forged", b"another secret"),
        seal(key("b"), b"forged", identity().entry_secret),
        seal(key("a"), b"forged", identity().entry_secret)[:-1],
        b"",
        b"\0" * 100,
        bytes(8 << 20),
    ],
    ids=["no secret", "other secret", "other key", "cut", "empty", "zeros", "long"],
)
async def test_who_can_write_to_redis_cannot_forge_entries(
    server: store_servers.Server, forged: bytes
) -> None:
    async with opened(url(server)) as one:
        client(server).set(stored(server, "a"), forged)
        assert await one.store.get(key("a")) is None
        assert one.told.corrupt == [("redis", key("a"))]


async def test_entry_of_another_type_is_a_miss(server: store_servers.Server) -> None:
    async with opened(url(server)) as one:
        client(server).lpush(stored(server, "a"), "a list")
        assert await one.store.get(key("a")) is None
        assert one.told.kinds() == {StoreError}
        await one.store.put(key("a"), b"value")
        assert await one.store.get(key("a")) == b"value"


# Away, frozen, slow, full


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


async def test_slow_store_is_left_alone_until_it_is_fast(server: store_servers.Server) -> None:
    delay = 0.0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await asyncio.sleep(delay)
                writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pump(reader, back), pump(there, writer))

    proxy = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    async with opened(f"redis://127.0.0.1:{port}/0", wait=0.25) as one:
        await until(lambda: one.store.available()["redis"])
        await one.store.put(key("a"), b"value")
        delay = 0.4
        assert await one.store.get(key("a")) is None
        await asyncio.sleep(2)  # probes are answered, too late
        assert one.store.available() == {"redis": False}
        delay = 0.0
        await until(lambda: one.store.available()["redis"])
        assert await one.store.get(key("a")) == b"value"
    proxy.close()


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


# Whose store it is


async def test_server_with_another_secret_is_refused(
    server: store_servers.Server, bucket: str
) -> None:
    async with opened(url(server), bucket) as first:
        await first.store.put(key("a"), b"value")
        for other, remedy in (
            (identity(b"another secret"), "copy the secret"),
            (identity(keys=(b"another key",)), "copy the key"),
        ):
            for where in (url(server), bucket):
                async with opened(where, own=other, connect=False) as second:
                    with pytest.raises(OtherIdentityError, match=remedy):
                        await second.store.connect()
                    assert await second.store.get(key("a")) is None
                    await second.store.put(key("a"), b"from the stranger")
        assert await first.store.get(key("a")) == b"value"
        assert not first.told.corrupt


async def test_signing_keys_may_be_replaced_one_at_a_time(server: store_servers.Server) -> None:
    for keys in ((b"1",), (b"1", b"2"), (b"2",)):
        async with opened(url(server), own=identity(keys=keys)) as one:
            assert one.store.available() == {"redis": True}
    async with opened(url(server), own=identity(keys=(b"1",)), connect=False) as late:
        with pytest.raises(OtherIdentityError):
            await late.store.connect()


async def test_damaged_mark_is_made_again(server: store_servers.Server) -> None:
    async with opened(url(server)):
        (mark,) = client(server).keys("lazyfx:1:identity/*")
    for damage in (b"", b"{", b"[]", b'{"tenant_secret": 1}', bytes(1 << 17)):
        client(server).set(mark, damage)
        async with opened(url(server)) as one:
            assert one.store.available() == {"redis": True}
    async with opened(url(server), own=identity(b"another"), connect=False) as other:
        with pytest.raises(OtherIdentityError):
            await other.store.connect()


async def test_stranger_whose_store_was_away_at_its_start_never_uses_it(
    server: store_servers.Server,
) -> None:
    server.kill()
    async with opened(url(server), own=identity(b"another")) as stranger:
        server.start()
        async with opened(url(server)) as owner:
            await owner.store.put(key("a"), b"value")
            await asyncio.sleep(1)
            if not stranger.store.available()["redis"]:  # else it was the first, and the owner
                with pytest.raises(SkippedError, match="another tenant secret"):
                    await until_told(stranger.store)


async def until_told(store: SharedStore) -> None:
    for _ in range(500):
        try:
            await store.put_if_absent(key("b"), b"value")
        except SkippedError as error:
            if "secret" in str(error):
                raise
        await asyncio.sleep(0.02)


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


# URLs


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "redis",
        "http://host",
        "s3://",
        "redis://host:port/0",
        "redis://[::1/0",
        "redis://host/x",
    ],
)
def test_wrong_urls_are_refused(wrong: str) -> None:
    with pytest.raises(SharedStoreError):
        open_remote(wrong, 600)


def test_urls_are_shown_without_secrets() -> None:
    where = "rediss://user:pass%40word@host:6379/3?password=pass&prefix=x"
    assert shown(where) == "rediss://host:6379/3"
    with pytest.raises(SharedStoreError) as caught:
        open_remote("redis://user:password@host:port/0", 600)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    "place", ["user:hid/den", ":12/hidden", ":hid?den", ":hid#den", "hid@d/en"]
)
def test_characters_of_a_password_must_be_encoded(place: str) -> None:
    where = f"redis://{place}@host:6379/0"
    assert "hid" not in shown(where)
    with pytest.raises(SharedStoreError, match="percent-encode") as caught:
        open_remote(where, 600)
    assert "hid" not in str(caught.value)
