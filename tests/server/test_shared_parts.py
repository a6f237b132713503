"""Uploads of one server in this process, whose pieces are in a real Redis."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterable

import pytest
import store_servers
from remote_stores import client, opened, url

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.blobs.intake import Blobs
from lazyfx_server.compiling.blobs.shared_parts import PART_BYTES, SharedParts
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights, FleetSettings
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import InvalidRequestError
from lazyfx_server.settings.limits import UploadLimits
from lazyfx_server.store import MemoryStore, SharedStore, Store
from lazyfx_server.telemetry import Observers

ALICE = Tenant("alice", b"a" * 32)


class Counted:
    """A store that counts the names it is asked for."""

    def __init__(self, inner: SharedStore) -> None:
        self._inner = inner
        self.asked = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def contains(self, keys: Iterable[str]) -> set[str]:
        wanted = list(keys)
        self.asked += len(wanted)
        return await self._inner.contains(wanted)


@pytest.fixture
async def shared() -> AsyncIterator[SharedStore]:
    server = store_servers.running("redis")
    client(server).flushall()
    async with opened(url(server)) as open_store:
        yield open_store.store


def blobs_over(shared: Store, **limits: int) -> Blobs:
    """What receives blobs, with a store of its own for those that are complete."""
    alone = FleetFlights(None, None, Observers(), FleetSettings())
    return Blobs(MemoryStore(1 << 26), UploadLimits(**limits), alone, shared)


def digest_of(data: bytes) -> graph_pb2.Digest:
    return graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))


async def test_size_of_a_blob_is_not_trusted(shared: SharedStore) -> None:
    """Of a blob with a first piece, a caller may claim that it is a million times as long."""
    store = Counted(shared)
    blobs = blobs_over(store)
    data = os.urandom(PART_BYTES)
    sha256 = hashlib.sha256(b"the whole").digest()
    for size in (1 << 32, (1 << 32) + 1, 1 << 50, (1 << 64) - 1):
        digest = graph_pb2.Digest(sha256=sha256, size_bytes=size)
        await shared.put(ALICE.part(sha256, size, 0), data)
        store.asked = 0
        expected = PART_BYTES if size <= 1 << 32 else 0
        assert await blobs.missing([digest], ALICE) == [(digest, expected)]
        assert store.asked < 20


@pytest.mark.parametrize("there", [0, 1, 2, 6, 7])
async def test_received_part_is_found_in_a_few_steps(shared: SharedStore, there: int) -> None:
    digest = digest_of(os.urandom(8 * PART_BYTES))
    for number in range(there):
        await shared.put(ALICE.part(digest.sha256, digest.size_bytes, number), b"piece")
    received = await SharedParts(shared).received([digest], ALICE)
    assert received.get(digest.sha256, 0) == there * PART_BYTES
    # A piece belongs to a blob of one size.
    longer = graph_pb2.Digest(sha256=digest.sha256, size_bytes=digest.size_bytes + 1)
    assert not await SharedParts(shared).received([longer], ALICE)
