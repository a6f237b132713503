"""Whose store it is: servers that share one have the same secrets."""

from __future__ import annotations

import asyncio

import pytest
import store_servers
from remote_stores import (
    client,
    forwarding,
    identity,
    key,
    opened,
    url,
)

from lazyfx_server.store import (
    OtherIdentityError,
    SharedStore,
    SkippedError,
)

pytestmark = pytest.mark.usefixtures("store_servers_end")


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
    whole = client(server).get(mark)
    at = whole.index(b'"tenant_secret": "') + 20
    other_digit = whole[:at] + (b"0" if whole[at] != ord("0") else b"1") + whole[at + 1 :]
    for damage in (b"", b"{", b"[]", b'{"tenant_secret": 1}', bytes(1 << 17), other_digit):
        client(server).set(mark, damage)
        async with opened(url(server)) as one:
            assert one.store.available() == {"redis": True}
    async with opened(url(server), own=identity(b"another"), connect=False) as other:
        with pytest.raises(OtherIdentityError):
            await other.store.connect()


async def test_stranger_whose_store_was_away_at_its_start_never_uses_it(
    server: store_servers.Server,
) -> None:
    port = store_servers.free_port()  # nobody listens here until the store has an owner
    async with opened(url(server)) as owner:
        await owner.store.put(key("a"), b"value")
        where = f"redis://127.0.0.1:{port}/0"
        async with (
            opened(where, own=identity(b"another")) as stranger,
            forwarding(server.port, port=port),
        ):
            told = await until_told(stranger.store)
            assert "another tenant secret" in told
            assert stranger.store.available() == {"redis": False}
            assert await stranger.store.get(key("a")) is None
            await stranger.store.put(key("a"), b"from the stranger")
        assert await owner.store.get(key("a")) == b"value"
        assert not owner.told.corrupt


async def until_told(store: SharedStore) -> str:
    """What a store says about its owner, once it has found out."""
    for _ in range(3000):
        with pytest.raises(SkippedError) as caught:
            await store.put_if_absent(key("b"), b"value")
        if "secret" in str(caught.value):
            return str(caught.value)
        await asyncio.sleep(0.02)
    raise AssertionError("it never found out")
