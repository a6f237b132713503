"""Blobs that clients send: which are missing, and taking them in."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.limits import RequestLimits, check_digest
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import InvalidRequestError, OverloadedError, TimedOutError
from lazyfx_server.store import Store

_MOST_DIGESTS = 100_000


class Blobs:
    """Takes in content-addressed bytes.

    Args:
        store: Where blobs are kept.
        limits: Bounds of uploads.
    """

    def __init__(self, store: Store, limits: RequestLimits) -> None:
        self._store = store
        self._limits = limits
        self._max_bytes = limits.max_blob_bytes
        self._staged: Counter[str] = Counter()

    async def missing(
        self, digests: Sequence[graph_pb2.Digest], tenant: Tenant
    ) -> list[graph_pb2.Digest]:
        """The digests whose blobs the tenant has not sent, in the order asked.

        Raises:
            InvalidRequestError: A digest is malformed, or there are too many.
        """
        if len(digests) > _MOST_DIGESTS:
            raise InvalidRequestError.of_field(
                "digests", f"has {len(digests)} entries; ask for at most {_MOST_DIGESTS} at a time"
            )
        for i, digest in enumerate(digests):
            check_digest(f"digests[{i}]", digest)
        places = [tenant.blob(digest.sha256) for digest in digests]
        present = await self._store.contains(places)
        return [d for d, place in zip(digests, places, strict=True) if place not in present]

    async def upload(
        self, chunks: AsyncIterator[pb.UploadBlobsRequest], tenant: Tenant
    ) -> tuple[int, int]:
        """Take in a stream of chunks.

        A blob is stored when its last byte has arrived and its digest is right; until
        then nothing of it is kept.

        Returns:
            Blobs stored and their bytes.

        Raises:
            InvalidRequestError: A chunk is out of order, too long, or a digest is wrong.
            TimedOutError: No chunk came for too long, or chunks come too slowly.
            OverloadedError: The tenant has too many unfinished uploads.
        """
        staging = _Staging(self._staged, tenant.name, self._limits.max_staged_bytes)
        try:
            return await self._take(chunks, tenant, staging)
        finally:
            staging.end()

    async def _take(
        self, chunks: AsyncIterator[pb.UploadBlobsRequest], tenant: Tenant, staging: _Staging
    ) -> tuple[int, int]:
        stored = stored_bytes = 0
        staged: _Staged | None = None
        limits = self._limits
        async for chunk in _within(chunks, limits.upload_idle_timeout, limits.min_upload_rate):
            check_digest("digest", chunk.digest)
            if chunk.digest.size_bytes > self._max_bytes:
                raise InvalidRequestError.of_field(
                    "digest.size_bytes",
                    f"is {chunk.digest.size_bytes}; at most {self._max_bytes} are taken "
                    "(setting max_blob_bytes)",
                )
            if staged is None:
                staged = _Staged(chunk.digest)
            staging.add(len(chunk.data))
            staged.add(chunk)
            if staged.complete:
                await self._store.put(tenant.blob(chunk.digest.sha256), staged.verified())
                stored += 1
                stored_bytes += chunk.digest.size_bytes
                staging.end()
                staged = None
        if staged is not None:
            raise InvalidRequestError.of_field(
                "data", f"the stream ended after {len(staged.data)} of {staged.size} bytes"
            )
        return stored, stored_bytes


class _Staged:
    """A blob that is arriving."""

    def __init__(self, digest: graph_pb2.Digest) -> None:
        self.sha256 = digest.sha256
        self.size = digest.size_bytes
        self.data = bytearray()
        self._hash = hashlib.sha256()

    def add(self, chunk: pb.UploadBlobsRequest) -> None:
        if chunk.digest.sha256 != self.sha256 or chunk.digest.size_bytes != self.size:
            raise InvalidRequestError.of_field(
                "digest", "changed before the blob was complete; send blobs one after the other"
            )
        if chunk.offset != len(self.data):
            raise InvalidRequestError.of_field(
                "offset", f"is {chunk.offset}; the next byte is {len(self.data)}"
            )
        if len(self.data) + len(chunk.data) > self.size:
            raise InvalidRequestError.of_field(
                "data", f"runs past the {self.size} bytes that digest.size_bytes announced"
            )
        if not chunk.data and self.size:
            raise InvalidRequestError.of_field("data", "is empty; every chunk carries bytes")
        self.data += chunk.data
        self._hash.update(chunk.data)

    @property
    def complete(self) -> bool:
        return len(self.data) == self.size

    def verified(self) -> bytes:
        if self._hash.digest() != self.sha256:
            raise InvalidRequestError.of_field(
                "digest.sha256", "is not the digest of the bytes that came; send the blob again"
            )
        return bytes(self.data)


class _Staging:
    """Counts the bytes of one upload that are not stored yet, for its tenant."""

    def __init__(self, staged: Counter[str], tenant: str, most: int) -> None:
        self._staged = staged
        self._tenant = tenant
        self._most = most
        self._bytes = 0

    def add(self, size: int) -> None:
        if self._staged[self._tenant] + size > self._most:
            raise OverloadedError(
                f"unfinished uploads hold {self._staged[self._tenant]} bytes; at most "
                f"{self._most} are taken at a time (setting max_staged_bytes)",
                retry_after=1.0,
            )
        self._staged[self._tenant] += size
        self._bytes += size

    def end(self) -> None:
        self._staged[self._tenant] -= self._bytes
        if not self._staged[self._tenant]:
            del self._staged[self._tenant]
        self._bytes = 0


async def _within(
    chunks: AsyncIterator[pb.UploadBlobsRequest], seconds: float, rate: int
) -> AsyncIterator[pb.UploadBlobsRequest]:
    """The chunks, each within `seconds` of the one before, and together not too slow."""
    started, received = time.monotonic(), 0
    while True:
        try:
            chunk = await asyncio.wait_for(anext(chunks), seconds)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:
            raise TimedOutError(
                f"no chunk came for {seconds:g} s (setting upload_idle_timeout)"
            ) from error
        received += len(chunk.data)
        taken = time.monotonic() - started
        if taken > seconds and received < rate * taken:
            raise TimedOutError(
                f"{received} bytes came in {taken:.0f} s; uploads must reach {rate} bytes a second "
                "(setting min_upload_rate)"
            )
        yield chunk
