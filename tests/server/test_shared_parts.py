"""Uploads of one server in this process, whose pieces are in a real Redis."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import threading
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
import store_servers
from remote_stores import client, opened, url

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.blobs.intake import Blobs
from lazyfx_server.compiling.blobs.shared_parts import BUCKET_PART_BYTES, PART_BYTES, SharedParts
from lazyfx_server.compiling.blobs.unfinished_uploads import StagedBlob
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights, FleetSettings
from lazyfx_server.compiling.tenants import Tenants
from lazyfx_server.errors import InvalidRequestError, OverloadedError
from lazyfx_server.settings.limits import UploadLimits
from lazyfx_server.store import MemoryStore, SharedStore, Store
from lazyfx_server.telemetry import Observers

ALICE = Tenants(bytes(32)).named("alice")
LEAST_BYTES = 2 * PART_BYTES


class Counted:
    """A store that counts the names it is asked for."""

    def __init__(self, inner: SharedStore) -> None:
        self._inner = inner
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
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


def blobs_over(shared: Store | Counted, piece: int = PART_BYTES, **limits: Any) -> Blobs:
    """What receives blobs, with a store of its own for those that are complete."""
    alone = FleetFlights(None, None, Observers(), FleetSettings())
    return Blobs(MemoryStore(1 << 26), UploadLimits(**limits), alone, cast("Store", shared), piece)


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


class Slow(Counted):
    """A store that takes its time to write pieces, and counts those that are read."""

    reads = 0

    async def put(self, key: str, value: bytes) -> None:
        await asyncio.sleep(0.2)
        await self._inner.put(key, value)

    async def get(self, key: str) -> bytes | None:
        self.reads += 1
        return await self._inner.get(key)


async def chunks_of(
    digest: graph_pb2.Digest, data: bytes, *offsets: int
) -> AsyncIterator[pb.UploadBlobsRequest]:
    for start, end in itertools.pairwise(offsets):
        yield pb.UploadBlobsRequest(digest=digest, offset=start, data=data[start:end])


@pytest.mark.parametrize("offsets", [(0, 2 * LEAST_BYTES), (0, LEAST_BYTES, LEAST_BYTES)])
@pytest.mark.parametrize("right", [True, False])
async def test_no_piece_stays_of_an_upload_that_is_over(
    shared: SharedStore, offsets: tuple[int, ...], *, right: bool
) -> None:
    """Also of those that were still being written when it ended."""
    blobs, data = blobs_over(Slow(shared)), os.urandom(2 * LEAST_BYTES)
    digest = digest_of(data if right else data[::-1])
    upload = blobs.upload(chunks_of(digest, data, *offsets), ALICE)
    if right and len(offsets) == 2:
        assert await upload == (1, len(data))
    else:
        with pytest.raises(InvalidRequestError):
            await upload
    await blobs.close()
    assert not client(store_servers.running("redis")).keys("lazyfx:1:uploads/*")


async def test_pieces_are_read_only_if_there_is_room_for_them(shared: SharedStore) -> None:
    data = os.urandom(2 * LEAST_BYTES)
    digest = digest_of(data)
    first = blobs_over(shared)
    with pytest.raises(InvalidRequestError, match="the stream ended"):
        await first.upload(chunks_of(digest, data, 0, LEAST_BYTES), ALICE)
    slow = Slow(shared)
    full = blobs_over(slow, max_staged_bytes=LEAST_BYTES - 1)
    rest = chunks_of(digest, data, LEAST_BYTES, len(data))
    with pytest.raises(OverloadedError, match="max_staged_bytes"):
        await full.upload(rest, ALICE)
    assert not slow.reads
    assert await blobs_over(shared).upload(
        chunks_of(digest, data, LEAST_BYTES, len(data)), ALICE
    ) == (1, len(data))


async def test_upload_comes_back_to_a_server_that_has_less_of_it(shared: SharedStore) -> None:
    data = os.urandom(5 * PART_BYTES)
    digest, some = digest_of(data), PART_BYTES + 300_000
    one, two = blobs_over(shared), blobs_over(shared)
    for blobs, offsets in ((one, (0, some)), (two, (PART_BYTES, 3 * PART_BYTES))):
        with pytest.raises(InvalidRequestError, match="the stream ended"):
            await blobs.upload(chunks_of(digest, data, *offsets), ALICE)
    rest = chunks_of(digest, data, 3 * PART_BYTES, len(data))
    assert await one.upload(rest, ALICE) == (1, len(data))


async def test_pieces_pass_by_a_small_store() -> None:
    """With a bucket for large entries, an upload evicts no small ones from Redis."""
    server, bucket = store_servers.running("redis"), store_servers.running("moto")
    client(server).flushall()
    data = os.urandom(2 * BUCKET_PART_BYTES + 1)
    digest = digest_of(data)
    async with AsyncExitStack() as stack:
        stack.enter_context(store_servers.s3_environment(bucket))
        opening = opened(url(server), f"s3://shared/{digest.sha256.hex()}")
        open_store = await stack.enter_async_context(opening)
        blobs = blobs_over(open_store.store, BUCKET_PART_BYTES)
        with pytest.raises(InvalidRequestError, match="the stream ended"):
            await blobs.upload(chunks_of(digest, data, 0, len(data) - 1), ALICE)
        sizes = [client(server).strlen(name) for name in client(server).keys("lazyfx:1:*")]
        assert max(sizes) < 10_000
        other = blobs_over(open_store.store, BUCKET_PART_BYTES)
        assert await other.missing([digest], ALICE) == [(digest, len(data) - 1)]
        rest = chunks_of(digest, data, len(data) - 1, len(data))
        assert await other.upload(rest, ALICE) == (1, len(data))


def test_bytes_that_arrive_while_others_are_read_follow_the_last_ones() -> None:
    """An upload may be resumed while a piece of it is still being read for the shared store."""
    data = os.urandom(1 << 22)
    blob = StagedBlob(digest_of(data))
    step = 1 << 16
    blob.add(pb.UploadBlobsRequest(digest=blob.digest, data=data[:step]))
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            assert blob.read(0, step) == data[:step]

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for start in range(step, len(data), step):
            part = data[start : start + step]
            blob.add(pb.UploadBlobsRequest(digest=blob.digest, offset=start, data=part))
        ended.set()
        for reader in readers:
            reader.result()
    assert blob.verified() == data
    blob.close()
