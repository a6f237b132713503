"""What stores on other machines keep, where, and for how long."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
import store_servers
from remote_stores import LARGE, client, identity, key, opened, stored, url

from lazyfx_server.store import (
    StoreError,
)
from lazyfx_server.store.opening_shared import open_remote
from lazyfx_server.store.shared_store import LARGE_BYTES
from lazyfx_server.store.verified_store import seal

pytestmark = pytest.mark.usefixtures("store_servers_end")


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


async def test_without_a_bucket_large_entries_are_in_pieces(
    server: store_servers.Server, tmp_path: Path
) -> None:
    value = os.urandom(3 * LARGE_BYTES + 17)
    async with (
        opened(url(server), folder=tmp_path / "1") as one,
        opened(url(server)) as other,
    ):
        await one.store.put(key("large"), value)
        assert await other.store.contains([key("large")]) == {key("large")}
        assert await other.store.get(key("large")) == value
        ask = client(server)
        pieces = ask.keys("lazyfx:1:pieces/*")
        assert len(pieces) == 13
        assert max(ask.strlen(piece) for piece in pieces) < LARGE_BYTES // 2
        # One that has lost a piece is not there, but on the server with a folder.
        ask.delete(pieces[5])
        assert await other.store.get(key("large")) is None
        assert await other.store.contains([key("large")]) == set()
        assert await one.store.get(key("large")) == value
        await other.store.put(key("large"), value)
        assert await other.store.get(key("large")) == value
        assert not one.told.errors
        assert not other.told.errors


async def test_two_servers_write_one_large_entry(server: store_servers.Server) -> None:
    values = [bytes([number]) * (2 * LARGE_BYTES) for number in range(4)]
    async with opened(url(server)) as one, opened(url(server)) as other:
        stores = [one.store, other.store] * 2
        writes = [s.put(key("a"), value) for s, value in zip(stores, values, strict=True)]
        await asyncio.gather(*writes)
        assert await one.store.get(key("a")) in values


async def test_entry_of_more_pieces_than_allowed_stays_in_the_folder(
    server: store_servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lazyfx_server.store import pieces_store

    monkeypatch.setattr(pieces_store, "MAX_PIECED_BYTES", LARGE_BYTES)
    async with (
        opened(url(server), folder=tmp_path / "1") as one,
        opened(url(server), folder=tmp_path / "2") as other,
    ):
        await one.store.put(key("large"), LARGE)
        assert await one.store.get(key("large")) == LARGE
        assert await other.store.get(key("large")) is None
        assert await other.store.contains([key("large")]) == set()
        assert not client(server).keys("lazyfx:1:pieces/*")


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
    from lazyfx_server.store import redis_store
    from lazyfx_server.store.buckets import s3_store

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


async def test_rights_of_a_user_that_the_docs_name_suffice(server: store_servers.Server) -> None:
    docs = (Path(__file__).parents[2] / "docs/stores.md").read_text("utf-8")
    rights = docs.partition("A user with an ACL needs `")[2].partition("`")[0].split()
    assert rights
    client(server).execute_command("ACL", "SETUSER", "fleet", "on", ">word", "~lazyfx:*", *rights)
    async with opened(f"redis://fleet:word@127.0.0.1:{server.port}/0") as one:
        assert one.store.available() == {"redis": True}
        await one.store.put(key("a"), b"value")
        await one.store.put(key("large"), LARGE)
        assert await one.store.get(key("a")) == b"value"
        client(server).set(stored(server, "a"), b"damaged")
        assert await one.store.get(key("a")) is None
        await one.store.delete(key("large"))
        assert one.store.leases is not None
        lease = await one.store.leases.take(key("b"))
        assert lease is not None
        assert await one.store.leases.renew(lease, b"note")
        assert await one.store.leases.holder(key("b")) == b"note"
        await one.store.leases.release(lease)
        assert not one.told.errors


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
